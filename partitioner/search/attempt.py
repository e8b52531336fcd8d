"""Attempt: the search for the best splits over one set of devices in one mode; see solver for the objective."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from partitioner.search.arrays import Ints
from partitioner.search.chains import ContiguousSearch
from partitioner.search.descent import improve_borders
from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate, lower_bound_ms
from partitioner.search.folds import Fold
from partitioner.search.levels import Levels, Order
from partitioner.search.local_search import search_placements
from partitioner.search.metis import metis_placement
from partitioner.search.mode import Mode
from partitioner.search.problem import Problem
from partitioner.search.split import Split

LOOSER = (1.0, 1.01, 1.03, 1.06)  # caps for clusters, relative to the cap: moving borders makes up for their coarseness
FEASIBLE = (1.03, 1.1, 1.3, math.inf)  # caps, relative to the lower bound, at which a first fold is looked for
ROUNDING = 1e-9  # relative; sums of the same costs in another order differ by less


class Attempt:
    """The search for one set of devices and one mode.

    fastest_ms: the least T that was found, None if nothing fits; byte_weight: as given, or the default.
    """

    def __init__(
        self, problem: Problem, levels: Levels, devices: Devices, mode: Mode, byte_weight: float | None
    ) -> None:
        self._problem, self._levels, self._devices, self._mode = problem, levels, devices, mode
        self._chains = [(order, ContiguousSearch(order.intervals, devices, mode)) for order in levels.orders]
        self.byte_weight = 1.0 if byte_weight is None else byte_weight
        chains = [split for split in (self._fastest_chain(*chain) for chain in self._chains) if split is not None]
        if byte_weight is None and mode == "async" and chains:
            figures = min(chains, key=_step_ms).evaluation
            moved = figures.bytes_per_step + figures.repeated_bytes
            if figures.staleness > 0 and moved > 0:
                self.byte_weight = figures.staleness / moved
        self._fastest_fold = self._find_fastest_fold() if mode == "async" and len(devices) > 1 else None
        starts = chains + ([self._split_of_fold(self._fastest_fold)] if self._fastest_fold else [])
        if not starts and mode == "async" and len(devices) > 1:
            starts = self._general()
        self._starts = starts
        self._branchy = self._between_branches() if mode == "async" and len(devices) > 1 else []
        self.fastest_ms = min(map(_step_ms, starts), default=None)

    def best(self, epsilon: float) -> Split:
        """The split of the least score among those found with T <= (1 + epsilon) x the least."""
        assert self.fastest_ms is not None
        cap = self.fastest_ms * (1 + epsilon + ROUNDING)
        found = [*self._starts, *self._chains_within(cap), *self._folds_within(cap), *self._branchy]
        return min(
            (split for split in found if split.evaluation.step_ms <= cap),
            key=lambda split: (split.score(self.byte_weight), split.evaluation.step_ms),
        )

    def _fastest_chain(self, order: Order, search: ContiguousSearch) -> Split | None:
        fastest = search.fastest_ms()
        return self._best_chain(order, search, fastest) if math.isfinite(fastest) else None

    def _best_chain(self, order: Order, search: ContiguousSearch, cap_ms: float) -> Split | None:
        chain = search.best(cap_ms * (1 + ROUNDING), self.byte_weight)
        if chain is None:
            return None
        assignment = np.repeat(np.arange(len(self._devices)), np.diff(chain.borders))
        return self._split(order.spread(assignment), chain.device_of, order.form)

    def _chains_within(self, cap_ms: float) -> Iterator[Split]:
        for order, search in self._chains:
            split = self._best_chain(order, search, cap_ms)
            if split is not None:
                yield split

    def _find_fastest_fold(self) -> Fold | None:
        """The fastest fold of clusters, its borders moved; None if no fold was found that fits."""
        bound = lower_bound_ms(self._problem, self._devices)
        for factor in FEASIBLE:
            cap = factor * bound if bound > 0 else math.inf
            level, search = self._levels.search_folds(self._devices, self._mode, cap)
            fold = search.fastest()
            if fold is not None:
                return self._improved(level.at_finest(fold), 0.0)
        return None

    def _folds_within(self, cap_ms: float) -> Iterator[Split]:
        if self._fastest_fold is None:
            return
        starts = [self._fastest_fold]
        level, search = self._levels.search_folds(self._devices, self._mode, cap_ms * LOOSER[-1])
        for looser in LOOSER:
            fold = search.best(cap_ms * looser, self.byte_weight)
            if fold is not None:
                starts.append(level.at_finest(fold))
        for start in starts:
            yield self._split_of_fold(self._improved(start, cap_ms))

    def _improved(self, fold: Fold, cap_ms: float) -> Fold:
        intervals = self._levels.orders[0].intervals
        return improve_borders(intervals, fold, self._devices, self._mode, cap_ms, self.byte_weight)

    def _split_of_fold(self, fold: Fold) -> Split:
        order = self._levels.orders[0]
        owner = np.empty(order.fine.problem.size, dtype=np.int64)
        for k in range(len(self._devices)):
            owner[fold.left[k] : fold.left[k + 1]] = k
            owner[fold.right[k + 1] : fold.right[k]] = k
        return self._labelled(order.spread(owner), fold.device_of)

    def _general(self) -> list[Split]:
        """A placement of clusters without any form, for memories that no fold fits."""
        clusters = self._levels.clusters[-1].coarse  # few, since every move is evaluated anew
        placed = search_placements(clusters.problem, self._devices, self._mode, self.byte_weight)
        if placed is None:
            return []
        nodes = self._levels.orders[0].spread(clusters.spread(placed))
        return [self._labelled(nodes, tuple(range(len(self._devices))), "general")]

    def _between_branches(self) -> list[Split]:
        """METIS's split, where it is installed and what it found is possible."""
        order = self._levels.orders[0]
        placed = metis_placement(order.fine.problem, self._devices)
        if placed is None or np.any(order.fine.problem.together >= 0):
            return []
        split = self._labelled(order.spread(placed), tuple(range(len(self._devices))), "general")
        return [split] if split.evaluation.feasible else []

    def _labelled(self, owner: Ints, device_of: Sequence[int], form: str = "folded") -> Split:
        """Number the components by their first node, but the output's last. form: of what is no chain."""
        last = int(owner[-1])
        seen = [int(k) for k in owner[np.sort(np.unique(owner, return_index=True)[1])]]
        names = [k for k in seen if k != last] + [last]
        number = np.empty(len(names), dtype=np.int64)
        number[names] = np.arange(len(names))
        assignment = number[owner]
        if np.all(np.diff(assignment) >= 0):
            form = "contiguous"
        return self._split(assignment, tuple(device_of[k] for k in names), form)

    def _split(self, assignment: Ints, device_of: tuple[int, ...], form: str) -> Split:
        evaluation = evaluate(self._problem, assignment, self._devices, self._mode, device_of)
        return Split(tuple(assignment.tolist()), device_of, form, evaluation)


def _step_ms(split: Split) -> float:
    return split.evaluation.step_ms
