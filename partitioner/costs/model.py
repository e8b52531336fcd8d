"""CostModel: where the costs of nodes come from: a data sheet, a saved profile, or a measurement on a device here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from partitioner.costs.lookup import apply_profile, load_profile
from partitioner.costs.node_costs import GraphCosts
from partitioner.costs.roofline import estimate
from partitioner.errors import UsageError
from partitioner.fleet import known_device, parse_fleet
from partitioner.graph.ir import TracedGraph
from profiles.cost_profile import CostProfile
from profiles.device_sheets import DEFAULT_DEVICE, device_specs, match_device
from profiles.json_files import JsonFileError

_LIVE = re.compile(r"cpu|cuda(:\d+)?")


class CostModel:
    """Costs of any traced graph, by one source.

    reference: the known device that they hold for. live: the device that is measured on, None if nothing is measured.
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
        self.reference = known_device(reference).name
        self.live = live
        self._profile = profile
        self._command = command
        self._progress = progress

    def __call__(self, graph: TracedGraph) -> GraphCosts:
        """Costs of the graph's nodes; measures first, where it is to be measured. MeasureError if it cannot be."""
        if self.live is not None:
            self._measure(graph)
        if self._profile is None:
            return estimate(graph, self.reference)
        return apply_profile(self._profile, graph, self.reference)

    def time_components(self, graph: TracedGraph, placed: Mapping[str, int], components: int) -> list[float]:
        """Times in ms of whole components on the device that is measured on; see component_timing."""
        from partitioner.costs.components import time_components

        assert self.live is not None
        return time_components(graph, placed, components, self.live)

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write what was measured; UsageError if that cannot be."""
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


def choose_cost_model(
    profile: str | None,
    device: str | None,
    devices: str,
    *,
    command: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> CostModel:
    """The source that the options ask for.

    profile: "cpu", "cuda:0" or the file of a saved profile. device: a data sheet's name. devices: as for parse_fleet.
    Without profile and device: the first of ``devices`` if they are named; else measured on the GPU if there is one;
    else the roofline of the default device.
    """
    if profile is None and device is None:
        named = not devices.strip().lstrip("+-").isdigit()
        if named:
            first = parse_fleet(devices, DEFAULT_DEVICE)[0].name
            return CostModel(first if first in device_specs() else DEFAULT_DEVICE)
        if not _has_gpu():
            return CostModel(DEFAULT_DEVICE)
        profile = "cuda:0"
    if profile is None:
        assert device is not None
        return CostModel(device)
    if _LIVE.fullmatch(profile):
        live = "cuda:0" if profile == "cuda" else profile
        return CostModel(device or _known_name(_name_of(live)), live=live, command=command, progress=progress)
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
