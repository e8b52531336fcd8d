"""plan_together: the plans of a pipeline's denoisers, which the same ranks are to run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from partitioner.errors import InfeasibleError
from partitioner.graph.ir import TracedGraph
from partitioner.models.call_rows import CallRows
from partitioner.planning.options import Progress
from partitioner.planning.planner import Planning, plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import GraphSource
from partitioner.staleness.edge_errors import EdgeErrors

if TYPE_CHECKING:
    from partitioner.models.spec import SteppedModule

_log = logging.getLogger("partitioner")


def plan_together(requests: Mapping[str, PlanRequest], *, progress: Progress = lambda _: None) -> dict[str, Planning]:
    """Plan several denoisers over the same devices, so that all plans have as many ranks.

    Where a plan leaves devices idle, the others are made for as many of the devices, the first ones, as it uses. A
    denoiser for which no plan is feasible is left out, with a warning.

    Args:
        requests: What to plan, by the pipeline's names; equal objects are planned once. All name the same devices.
        progress: Called with a sentence before each part of the work.

    Raises:
        TraceError, MeasureError: As ``plan``.
        InfeasibleError: No plan is feasible for any of them.
    """
    asked = {id(request): _replaced(request, _TracedOnce(request.denoiser)) for request in requests.values()}
    made: dict[int, Planning] = {}
    failures: dict[str, InfeasibleError] = {}
    devices = max(len(request.fleet) for request in asked.values())
    while any(key not in made or made[key].plan.ranks > devices for key in asked):
        for key, request in list(asked.items()):
            if key in made and made[key].plan.ranks <= devices:
                continue
            try:
                made[key] = plan(_replaced(request, request.denoiser, devices), progress=progress)
            except InfeasibleError as error:
                failures[", ".join(name for name, own in requests.items() if id(own) == key)] = error
                made.pop(key, None)
                del asked[key]
        if not made:
            raise InfeasibleError("; ".join(f"{name}: {why}" for name, why in failures.items()))
        devices = min(planning.plan.ranks for planning in made.values())
    for name, why in failures.items():
        _log.warning("no plan for %s, which runs in the pipeline, on the driver's device: %s", name, why)
    return {name: made[id(request)] for name, request in requests.items() if id(request) in made}


def _replaced(request: PlanRequest, denoiser: GraphSource, devices: int | None = None) -> PlanRequest:
    """The request for another source of graphs. devices: only the first so many."""
    return PlanRequest(
        denoiser, request.fleet[:devices], request.costs, request.options, request.sampling, request.quality
    )


@dataclass(eq=False)
class _TracedOnce:
    """A source of graphs that keeps what was traced."""

    source: GraphSource
    traced: dict[int, TracedGraph] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def step(self) -> CallRows:
        return self.source.step

    @property
    def divides_unasked(self) -> bool:
        return self.source.divides_unasked

    @property
    def revision(self) -> str | None:
        return self.source.revision

    @property
    def beside(self) -> tuple[SteppedModule, ...]:
        return self.source.beside

    def trace(self, rows: Iterable[int], progress: Progress) -> dict[int, TracedGraph]:
        wanted = set(rows)
        missing = wanted - self.traced.keys()
        if missing:
            self.traced |= self.source.trace(missing, progress)
        return {count: self.traced[count] for count in wanted}

    def edge_errors(self, whole: TracedGraph, progress: Progress) -> EdgeErrors | None:
        return self.source.edge_errors(whole, progress)
