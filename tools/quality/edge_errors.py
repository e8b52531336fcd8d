"""measure_edge_errors: the error in a denoiser's output that a lag of one step causes on each edge of its graph."""

from __future__ import annotations

from typing import Any

from torch import nn

from partitioner.graph.arguments import bind_arguments
from partitioner.graph.export import trace
from partitioner.models.find_spec import live_spec
from partitioner.staleness.measured import measure_module_edge_errors
from profiles.quality_profile import MeasuredDrift
from runtime.denoiser import denoiser_name
from tools.quality.measured_pipeline import MeasuredPipeline
from tools.quality.samplers import SamplingCase

DRIFT_CALLS, DRIFT_PROBES, DRIFT_PARTS = 8, 16, 8  # calls of a trajectory, probes of each, numbers kept of an edge


def measure_edge_errors(pipeline: MeasuredPipeline, case: SamplingCase) -> MeasuredDrift:
    """Measure the edges in some steps of one exact trajectory, that of the pipeline's first sample."""
    denoiser = getattr(pipeline.pipe, denoiser_name(pipeline.pipe))
    calls: list[dict[str, Any]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = bind_arguments(module, args, kwargs)
        calls.append({name: value for name, value in given.items() if value is not None})

    pipeline.use(case)
    with denoiser.register_forward_pre_hook(keep, with_kwargs=True):
        pipeline.generate(case.steps, samples=1)
    first = min(4, len(calls) - 2)  # as after a warm-up
    some = calls[first : first + DRIFT_CALLS]
    graph = trace(denoiser, some[0], live_spec(denoiser, pipeline.pipe).roles, model=pipeline.name)
    drift = measure_module_edge_errors(denoiser, graph, some, probes=DRIFT_PROBES)
    return MeasuredDrift(
        denoiser=pipeline.name,
        edges=tuple((graph.node_by_name[u].key, graph.node_by_name[v].key) for u, v in drift.edges),
        sketches=tuple(tuple(float(f"{x:.5g}") for x in row) for row in drift.condensed(DRIFT_PARTS).tolist()),
    )
