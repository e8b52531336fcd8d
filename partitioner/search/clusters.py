"""Where borders may stand: between runs of nodes (the finest level) and between clusters of these (the coarser ones).

Every coarser level's borders are borders of the finer one, so a split of clusters is also a split of the finer runs,
and moving its borders there can only improve it.
"""

from __future__ import annotations

import heapq

import numpy as np

from partitioner.search.arrays import Ints
from partitioner.search.problem import Problem

LONG = 5e-4  # share of all work from which on a light node counts as heavy: it can even out components


def fine_borders(problem: Problem) -> Ints:
    """Border positions, ends included: one between any two neighbouring heavy nodes.

    Views, casts and elementwise nodes, unless they take long themselves, go with what makes or what reads them: the
    border between two heavy nodes stands where it sends the fewest bytes (and has the fewest shared items read on both
    sides), the earliest of these.
    """
    heavy = np.flatnonzero(~problem.light | (problem.load_ms > LONG * problem.total_ms))
    legal = problem.legal_border
    weight = problem.live_bytes() + problem.repeated_bytes()
    borders = [0]
    ends = heavy if len(heavy) > 1 else np.arange(problem.size)
    for left, right in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        between = np.arange(left + 1, right + 1)
        between = between[legal[between]]
        if len(between):
            borders.append(int(between[np.argmin(weight[between])]))
    return np.array([*borders, problem.size], dtype=np.int64)


def cluster_borders(problem: Problem, limit: int) -> Ints:
    """A subset of the borders 0..size with at most ``limit`` clusters, ends included.

    The border that costs most to cut goes first, as long as the two clusters that it joins stay small together; where
    none is left, what counts as small grows. So clusters are even in time and end where little is sent.
    """
    weight = (problem.live_bytes() + problem.repeated_bytes()).tolist()
    cost = problem.load_ms.tolist()
    before = list(range(-1, problem.size))  # of each border, the one before it that is left
    after = list(range(1, problem.size + 2))
    sums = np.concatenate([[0.0], np.cumsum(cost)]).tolist()
    count, small = problem.size, sums[-1] / limit
    waiting = [(-weight[p], p) for p in range(1, problem.size)]
    heapq.heapify(waiting)
    while count > limit:
        refused = []
        while waiting and count > limit:
            entry = heapq.heappop(waiting)
            p = entry[1]
            if sums[after[p]] - sums[before[p]] > small:
                refused.append(entry)
                continue
            after[before[p]], before[after[p]] = after[p], before[p]
            count -= 1
        waiting += refused
        heapq.heapify(waiting)
        small = small * 1.25 if small > 0 else 1.0
    left = [0]
    while left[-1] < problem.size:
        left.append(after[left[-1]])
    return np.array(left, dtype=np.int64)
