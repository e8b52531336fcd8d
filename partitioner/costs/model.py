"""CostModel: where the costs of nodes come from: a data sheet, a saved profile, or a measurement on a device here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from partitioner.costs.lookup import apply_profile, load_profile
from partitioner.costs.node_costs import GraphCosts
from partitioner.costs.roofline import estimate
from partitioner.errors import UsageError
from partitioner.fleet import Fleet, known_device
from partitioner.graph.ir import TracedGraph
from profiles.cost_profile import CostProfile
from profiles.device_sheets import DEFAULT_DEVICE, device_spec, device_specs, match_device
from profiles.json_files import JsonFileError

CostKind = Literal["measured", "profile", "data sheet", "given"]
ComponentTimer = Callable[[TracedGraph, Mapping[str, int], int], list[float]]  # as CostModel.time_components

_LIVE = re.compile(r"cpu|cuda(:\d+)?")


class CostModel:
    """Gives the costs of any traced graph's nodes, all from one source.

    Attributes:
        reference: Name of the known device that the costs hold for.
        live: The torch device that operators are measured on, such as "cuda:0"; None if nothing is measured.
        driver_ms: The pipeline's own work between two calls of the denoiser (guidance, a step of the sampler), in ms
            on the reference device. It comes in every step on top of the nodes' costs.

    >>> cost_model = CostModel("a5000")
    >>> cost_model.kind, cost_model.driver_ms
    ('data sheet', 0.5)
    """

    def __init__(
        self,
        reference: str,
        *,
        profile: CostProfile | None = None,
        live: str | None = None,
        command: str = "",
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Choose a source; nothing is measured or estimated yet.

        Args:
            reference: Name of a device with a data sheet, or the start of one that is unique ("a100"). What the
                source lacks is estimated for it.
            profile: Measured times to look up.
            live: A torch device here, to measure the signatures of every graph on ("cpu", "cuda:0").
            command: What a measured profile notes as its origin.
            progress: Called with a sentence while operators are measured.

        Raises:
            UsageError: No data sheet has that name.
        """
        self.reference = known_device(reference).name
        self.live = live
        self.driver_ms = device_spec(self.reference).driver_ms
        self._profile = profile
        self._command = command
        self._progress = progress

    @property
    def kind(self) -> CostKind:
        """Where the costs come from: measured here, a saved profile, or a data sheet (roofline)."""
        if self.live is not None:
            return "measured"
        return "data sheet" if self._profile is None else "profile"

    @property
    def default_dtype(self) -> str | None:
        """The dtype that denoisers run in on this device where the user names none; None: whatever the model's is.

        Half precision is slow on a CPU, so ``run-plan`` takes float32 there.
        """
        return "float32" if self.reference == "cpu" else None

    def __call__(self, graph: TracedGraph) -> GraphCosts:
        """Costs of the graph's nodes; operators are measured first where the source is a device here.

        Raises:
            MeasureError: The device is not there, or does not support one of the operators.
        """
        if self.live is not None:
            self._measure(graph)
        if self._profile is None:
            return estimate(graph, self.reference)
        return apply_profile(self._profile, graph, self.reference)

    @property
    def times_components(self) -> bool:
        """Whether whole components can be measured; see time_components."""
        return self.live is not None

    def time_components(self, graph: TracedGraph, placed: Mapping[str, int], components: int) -> list[float]:
        """Times in ms of whole components, run on the device that is measured on; see costs.components.

        Args:
            graph: The graph that is split.
            placed: Latent node name -> component.
            components: How many there are.
        """
        from partitioner.costs.components import time_components

        assert self.live is not None
        return time_components(graph, placed, components, self.live)

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write what was measured as a cost profile.

        Raises:
            UsageError: Nothing was measured, the file exists and may not be overwritten, or it cannot be written.
        """
        if self._profile is None:
            raise UsageError("nothing was measured that could be saved")
        try:
            self._profile.save(path, overwrite)
        except JsonFileError as error:
            raise UsageError(str(error)) from None

    def _measure(self, graph: TracedGraph) -> None:
        from partitioner.costs.measure import measure

        def progress(done: int, total: int) -> None:
            if done == total or done % 25 == 0:
                self._progress(f"measured {done} of {total} distinct operator calls on {self.live}")

        assert self.live is not None
        fresh = measure(graph, self.live, command=self._command, progress=progress)
        if self._profile is not None:  # of the other graph
            fresh = fresh.model_copy(update={"signatures": {**fresh.signatures, **self._profile.signatures}})
        self._profile = fresh


class GivenCosts(CostModel):
    """Costs that a function gives, for whoever has a source of their own."""

    def __init__(
        self,
        costs_of: Callable[[TracedGraph], GraphCosts],
        reference: str,
        *,
        driver_ms: float = 0.0,
        timer: ComponentTimer | None = None,
    ) -> None:
        """Take the costs from a function.

        Args:
            costs_of: Gives the costs of a graph's nodes.
            reference: What the device that they hold for is called; it needs no data sheet.
            driver_ms: The pipeline's own work between two calls of the denoiser, in ms.
            timer: Gives the times of whole components as ``time_components`` does, where they can be measured.
        """
        self.reference = reference
        self.live = None
        self.driver_ms = driver_ms
        self._profile = None
        self._costs_of = costs_of
        self._timer = timer

    @property
    def kind(self) -> CostKind:
        """A function of the caller's."""
        return "given"

    def __call__(self, graph: TracedGraph) -> GraphCosts:
        """What the function gives for the graph."""
        return self._costs_of(graph)

    @property
    def times_components(self) -> bool:
        """Whether a timer was given."""
        return self._timer is not None

    def time_components(self, graph: TracedGraph, placed: Mapping[str, int], components: int) -> list[float]:
        """What the timer gives."""
        assert self._timer is not None
        return self._timer(graph, placed, components)


def choose_cost_model(
    profile: str | None,
    device: str | None,
    devices: Fleet | int = 1,
    *,
    command: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> CostModel:
    """The cost model that the command's options ask for.

    Without profile and device it is the data sheet of the first of ``devices`` if they are named, else a measurement
    on the GPU if there is one here, else the data sheet of the default device.

    Args:
        profile: "cpu" or "cuda:0" to measure there, or the file of a saved profile.
        device: Name of the data sheet to estimate from, and for what a profile lacks.
        devices: The devices that are planned for, as from parse_devices.
        command: What a measured profile notes as its origin.
        progress: Called with a sentence while operators are measured.

    Raises:
        UsageError: A file, device or data sheet is not there.
    """
    if profile is None and device is None:
        if not isinstance(devices, int):
            first = devices[0].name
            return CostModel(first if first in device_specs() else DEFAULT_DEVICE)
        if not _has_gpu():
            return CostModel(DEFAULT_DEVICE)
        profile = "cuda:0"
    if profile is None:
        assert device is not None
        return CostModel(device)
    if _LIVE.fullmatch(profile):
        live = "cuda:0" if profile == "cuda" else profile
        name = _name_of(live)  # which is there
        return CostModel(device or _known_name(name), live=live, command=command, progress=progress)
    saved = load_profile(profile)
    return CostModel(device or _known_name("cpu" if saved.device == "cpu" else saved.device_name), profile=saved)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _name_of(live: str) -> str:
    if live == "cpu":
        return live
    import torch

    index = int(live.partition(":")[2])
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise UsageError(f"--profile {live}: there is no such device here; use --profile cpu or --device NAME")
    return torch.cuda.get_device_name(index)


def _known_name(name: str) -> str:
    """The data sheet that memory, links and what was not measured are taken from."""
    known = match_device(name)
    if known is None:
        raise UsageError(
            f"there is no data sheet of {name}; name the most similar device with --device: {', '.join(device_specs())}"
        )
    return known
