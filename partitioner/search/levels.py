"""Levels: the execution orders of a Problem and its coarser levels, with the tables that every search reads.

    level                made by             searched for
    ------------------   -----------------   ---------------------------------------
    nodes                the traced graph    (only evaluated)
    runs, the finest     fine_borders        contiguous splits; a fold's last borders
    up to 120 clusters   cluster_borders     folds, over the finest that is not too large
    60, 30 clusters      cluster_borders     folds where memory or cap leave much room

Every level's borders are borders of the one above it. All of this depends on the Problem alone, not on devices or mode,
and is computed once, when it is first needed.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from partitioner.search.arrays import Ints
from partitioner.search.clusters import cluster_borders, fine_borders
from partitioner.search.coarsen import Coarse, coarsen
from partitioner.search.devices import Devices
from partitioner.search.folds import Fold, FoldedSearch, TooManyCandidatesError
from partitioner.search.intervals import Intervals
from partitioner.search.mode import Mode
from partitioner.search.node_order import depth_first_order, reordered
from partitioner.search.problem import Problem

FEWEST = 30  # clusters of the coarsest level; all their components are few enough to be searched
FINEST = 1500  # runs at the finest level, whose tables grow as the square


@dataclass(frozen=True, eq=False)
class Order:
    """An execution order of the nodes, and the Problem in it at the finest level."""

    nodes: Ints
    fine: Coarse
    intervals: Intervals
    form: str

    def spread(self, assignment: Ints) -> Ints:
        """Component of each run -> component of each node of the given Problem."""
        result = np.empty(len(self.nodes), dtype=np.int64)
        result[self.nodes] = self.fine.spread(assignment)
        return result


@dataclass(frozen=True, eq=False)
class Level:
    """Clusters: runs of the nodes of the finest level."""

    coarse: Coarse
    intervals: Intervals

    def at_finest(self, fold: Fold) -> Fold:
        left, right = (self.coarse.borders[list(borders)] for borders in (fold.left, fold.right))
        return Fold(tuple(left.tolist()), tuple(right.tolist()), fold.device_of)


class Levels:
    """The execution orders and levels of one Problem. cluster_limit: clusters of the finest clustering, at most."""

    def __init__(self, problem: Problem, cluster_limit: int) -> None:
        self._problem = problem
        self._cluster_limit = cluster_limit

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """The given order, and another one if it differs."""
        given = np.arange(self._problem.size)
        orders = [_order(self._problem, given, "contiguous")]
        other = depth_first_order(self._problem)
        if not np.array_equal(given, other):
            orders.append(_order(reordered(self._problem, other), other, "reordered"))
        return tuple(orders)

    @cached_property
    def clusters(self) -> tuple[Level, ...]:
        """Nested levels, each half as fine as the one before."""
        levels: list[Level] = []
        fine = self.orders[0].fine.problem
        borders = np.arange(fine.size + 1)
        limit = self._cluster_limit
        while not levels or limit >= FEWEST:
            borders = borders[cluster_borders(coarsen(fine, borders.tolist()).problem, limit)]
            coarse = coarsen(fine, borders.tolist())
            levels.append(Level(coarse, Intervals(coarse.problem)))
            limit //= 2
        return tuple(levels)

    def search_folds(self, devices: Devices, mode: Mode, cap_ms: float) -> tuple[Level, FoldedSearch]:
        """The folds of the finest clusters of which there are not too many."""
        for level in self.clusters[:-1]:
            with contextlib.suppress(TooManyCandidatesError):
                return level, FoldedSearch(level.intervals, devices, mode, cap_ms)
        coarsest = self.clusters[-1]
        return coarsest, FoldedSearch(coarsest.intervals, devices, mode, cap_ms, whatever_it_takes=True)


def _order(problem: Problem, nodes: Ints, form: str) -> Order:
    borders = fine_borders(problem)
    if len(borders) > FINEST + 1:
        borders = borders[cluster_borders(coarsen(problem, borders.tolist()).problem, FINEST)]
    fine = coarsen(problem, borders.tolist())
    return Order(nodes, fine, Intervals(fine.problem), form)
