"""FittedModel: a model of the paper with costs under which one GPU takes the published latency.

One number per model is fitted, to the published latency of one GPU and to nothing else: the share of its peaks that the
GPU reaches. A latency is one equation, so all operator classes of a model get the same share; the efficiencies in
devices.json are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from partitioner.costs.node_costs import GraphCosts
from partitioner.costs.roofline import estimate_on
from partitioner.graph.ir import TracedGraph
from partitioner.models.find_spec import model_spec
from partitioner.models.source import diffusers_class
from partitioner.models.spec import trace_model
from partitioner.simulator.actions import work
from partitioner.simulator.simulate import Simulation
from profiles.device_sheets import DeviceSpec, Efficiency, device_spec

PEAK = Efficiency(conv=1.0, matmul=1.0, attention=1.0, memory=1.0)


@dataclass(frozen=True)
class FittedModel:
    """One model, with costs under which a pipeline call on one GPU takes the published time.

    Attributes:
        model: its name in partitioner.models.
        spec: data sheet of the GPU.
        steps: denoiser calls of a pipeline call.
        record: what the paper says of the model.
        whole: graph of a full denoiser call.
        half: graph of a call with one half of the guidance batch.
        costs, half_costs: of these graphs.
        efficiency: fitted; the share of its peaks that the GPU reaches.
        outside_ms: what a pipeline call takes besides the denoiser's calls.
    """

    model: str
    spec: DeviceSpec
    steps: int
    record: Mapping[str, Any]
    whole: TracedGraph
    half: TracedGraph
    costs: GraphCosts
    half_costs: GraphCosts
    efficiency: float
    outside_ms: float

    @property
    def sequential_ms(self) -> float:
        """The published latency of one GPU."""
        return float(self.record["sequential_latency_s"]) * 1e3

    @cached_property
    def costs_ms(self) -> Mapping[str, float]:
        """Node of ``whole`` -> ms."""
        return times_of(self.costs)

    @cached_property
    def half_costs_ms(self) -> Mapping[str, float]:
        """Node of ``half`` -> ms."""
        return times_of(self.half_costs)

    def latency_ms(self, simulation: Simulation) -> float:
        """Time of a whole pipeline call whose denoiser calls take as long as simulated."""
        return simulation.trajectory_ms + self.outside_ms


def fit_model(model: str, published: Mapping[str, Any], pixels: int | None = None) -> FittedModel:
    """Trace a model and its decoder without weights, and fit its costs.

    Args:
        model: its name in partitioner.models.
        published: as read_published returns it.
        pixels: height and width of the picture; None for the model's usual size.
    """
    record = published["models"][model]
    device, steps = published["device"], published["steps"]
    spec, described = device_spec(device), model_spec(model, height=pixels, width=pixels)
    peak = spec.model_copy(update={"efficiency": PEAK})
    whole, half = trace_model(described), trace_model(described, rows=described.step.rows // 2)
    costs, half_costs, decoding = (
        estimate_on(graph, peak, device) for graph in (whole, half, trace_decoder(record["decoder"]))
    )
    decoder_ms = sum(times_of(decoding).values()) * record["decoder"]["calls"]
    scale = 1 / fit_efficiency(float(record["sequential_latency_s"]) * 1e3, times_of(costs), decoder_ms, steps, spec)
    return FittedModel(
        model=model,
        spec=spec,
        steps=steps,
        record=record,
        whole=whole,
        half=half,
        costs=scaled(costs, scale),
        half_costs=scaled(half_costs, scale),
        efficiency=1 / scale,
        outside_ms=decoder_ms * scale,
    )


def times_of(costs: GraphCosts) -> dict[str, float]:
    """Node -> ms, as plain numbers."""
    return {name: cost.ms for name, cost in costs.nodes.items()}


def scaled(costs: GraphCosts, scale: float) -> GraphCosts:
    """The same costs, each multiplied by ``scale``."""
    return replace(costs, nodes={name: replace(cost, ms=cost.ms * scale) for name, cost in costs.nodes.items()})


def trace_decoder(record: Mapping[str, Any]) -> TracedGraph:
    """Trace the network that turns latents into pixels, built without weights."""
    import torch

    from partitioner.graph.export import fake_mode, trace

    dtype = getattr(torch, record["dtype"])
    before = torch.get_default_dtype()
    with fake_mode():
        torch.set_default_dtype(dtype)
        try:
            decoder = diffusers_class(record["class_name"])(**record["config"]).eval().decoder
        finally:
            torch.set_default_dtype(before)
        inputs: dict[str, Any] = {"sample": torch.zeros(record["shape"], dtype=dtype)}
        if record["class_name"] == "AutoencoderKLTemporalDecoder":
            frames = record["shape"][0]
            inputs |= {"image_only_indicator": torch.zeros(1, frames, dtype=dtype), "num_frames": frames}
        return trace(
            decoder, inputs, {"sample": "latent", "image_only_indicator": "prompt"}, model=record["class_name"]
        )


def fit_efficiency(
    latency_ms: float, peak_ms: Mapping[str, float], outside_ms: float, steps: int, spec: DeviceSpec
) -> float:
    """The share of its peaks that every node must reach for one GPU to take ``latency_ms``; found by bisection.

    Args:
        latency_ms: of a pipeline call.
        peak_ms: node -> time at the peaks.
        outside_ms: time at the peaks of what a pipeline call does besides the denoiser's calls.
        steps: denoiser calls of a pipeline call.
        spec: launch and driver times of the GPU.

    Raises:
        ValueError: the latency is below what the GPU takes at its peaks.
    """

    def total(efficiency: float) -> float:
        call = work("denoiser", [ms / efficiency for ms in peak_ms.values()], spec.launch_us * 1e-3)
        return steps * (call.lead_ms + spec.driver_ms) + outside_ms / efficiency

    low, high = 1e-6, 1.0
    if total(high) > latency_ms:
        raise ValueError(f"{steps} calls take more than {latency_ms} ms even at the device's peaks")
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) > latency_ms else (low, middle)
    return high
