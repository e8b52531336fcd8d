"""Certificate: how near a split's step time is to the least of all placements, found with HiGHS (extra "prove")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from partitioner.search.arrays import Ints
from partitioner.search.clusters import cluster_borders, fine_borders
from partitioner.search.coarsen import Coarse, coarsen
from partitioner.search.devices import Devices
from partitioner.search.evaluate import lower_bound_ms
from partitioner.search.mode import Mode
from partitioner.search.placement_program import fastest_placement, load_highspy
from partitioner.search.problem import Problem
from partitioner.search.split import Split

CLUSTERS = 60
PROVED = 1e-4  # relative; what the program's own tolerances may blur


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is proved of a split's step time, step_ms.

    No placement of that many clusters, among whose borders are the split's, takes less than bound_ms. gap: how far the
    split may be above the least.
    """

    step_ms: float
    bound_ms: float
    clusters: int

    @property
    def gap(self) -> float:
        return self.step_ms / self.bound_ms - 1 if self.bound_ms > 0 else 0.0

    @property
    def proved(self) -> bool:
        return self.gap <= PROVED

    def __str__(self) -> str:
        return "proved" if self.proved else f"gap {self.gap:.2%}"


def prove(
    problem: Problem,
    devices: Devices,
    mode: Mode,
    split: Split,
    *,
    time_limit_s: float = 60.0,
    clusters: int = CLUSTERS,
) -> Certificate:
    """How near ``split``'s step time is to the least of any placement of clusters (in look-ahead: of any chain).

    Raises UsageError if highspy is not installed.
    """
    load_highspy()
    coarse = _clusters_around(problem, np.array(split.assignment), clusters)
    first = coarse.borders[:-1]
    start = [split.device_of[split.assignment[v]] for v in first.tolist()]
    found = fastest_placement(coarse.problem, devices, mode, time_limit_s=time_limit_s, start=start)
    bound = max(found.bound_ms, lower_bound_ms(problem, devices))
    return Certificate(split.evaluation.step_ms, min(bound, split.evaluation.step_ms), coarse.problem.size)


def _clusters_around(problem: Problem, assignment: Ints, limit: int) -> Coarse:
    """At most about ``limit`` clusters, none of which the split cuts."""
    fine = fine_borders(problem)
    own = np.flatnonzero(np.diff(assignment)) + 1
    fine_problem = coarsen(problem, np.union1d(fine, own).tolist())
    coarse = fine_problem.borders[cluster_borders(fine_problem.problem, limit)]
    return coarsen(problem, np.union1d(coarse, own).tolist())
