"""solve: a Problem and devices in, the best split found out. Pure numpy; every result is re-computed by ``evaluate``.

Objective, in order: step time T; then, among splits with T <= (1 + epsilon) x the best T, staleness (in plain async) +
byte_weight x bytes. Look-ahead searches chains, async also folds. Deterministic.

The contiguous search is exact at the finest level. Folds are searched exactly over clusters, for several caps on T, and
what is found is refined at the finest level; the best of all, and of METIS's where it is installed, is taken.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from partitioner.errors import InfeasibleError, UsageError
from partitioner.search.arrays import Ints
from partitioner.search.chains import ContiguousSearch
from partitioner.search.clusters import cluster_borders, fine_borders
from partitioner.search.coarsen import Coarse, coarsen
from partitioner.search.descent import refine
from partitioner.search.devices import Devices
from partitioner.search.evaluate import Evaluation, evaluate, lower_bound_ms
from partitioner.search.folds import Fold, FoldedSearch, TooManyCandidatesError
from partitioner.search.intervals import Pieces
from partitioner.search.local_search import search_placements
from partitioner.search.metis import metis_placement
from partitioner.search.mode import MODES, Mode
from partitioner.search.node_order import depth_first_order, reordered
from partitioner.search.problem import Problem

EPSILON = 0.005
SWEEP = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
CLUSTERS = 120
FEWEST = 30  # clusters of the coarsest level; all their components are few enough to be searched
FINEST = 1500  # runs at the finest level, whose tables grow as the square
LOOSER = (1.0, 1.01, 1.03, 1.06)  # caps for clusters, relative to the cap: refining makes up for their coarseness
FEASIBLE = (1.03, 1.1, 1.3, math.inf)  # caps, relative to the lower bound, at which a first fold is looked for
ROUNDING = 1e-9  # relative; sums of the same costs in another order differ by less


@dataclass(frozen=True)
class Split:
    """assignment: component of each node; device_of: device of each component; form: contiguous, folded or general.

    The last component makes the denoiser's output.
    """

    assignment: tuple[int, ...]
    device_of: tuple[int, ...]
    form: str
    evaluation: Evaluation

    def score(self, byte_weight: float) -> float:
        """What is minimised among splits of about the same T, up to a constant; see Figures.score."""
        figures = self.evaluation
        return figures.staleness + byte_weight * (figures.bytes_per_step + figures.repeated_bytes)


@dataclass(frozen=True, eq=False)
class _Order:
    """An execution order of the nodes, and the Problem in it at the finest level."""

    nodes: Ints
    fine: Coarse
    pieces: Pieces
    form: str

    def spread(self, assignment: Ints) -> Ints:
        """Component of each run -> component of each node of the given Problem."""
        result = np.empty(len(self.nodes), dtype=np.int64)
        result[self.nodes] = self.fine.spread(assignment)
        return result


@dataclass(frozen=True, eq=False)
class _Level:
    """Clusters: runs of the nodes of the finest level."""

    coarse: Coarse
    pieces: Pieces

    def at_finest(self, fold: Fold) -> Fold:
        left, right = (self.coarse.borders[list(borders)] for borders in (fold.left, fold.right))
        return Fold(tuple(left.tolist()), tuple(right.tolist()), fold.device_of)


class Solver:
    """Splits one Problem, over any devices; what depends on the Problem alone is computed once.

    clusters: how many the folded search moves, at most.
    """

    def __init__(self, problem: Problem, *, clusters: int = CLUSTERS) -> None:
        self.problem = problem
        self._cluster_limit = clusters

    def solve(
        self, devices: Devices, mode: Mode = "lookahead", *, epsilon: float = EPSILON, byte_weight: float | None = None
    ) -> Split:
        """The best split over all the devices, one component each.

        epsilon: how much slower than the fastest split the result may be, as a share. byte_weight: staleness that one
        byte per step is worth; by default 1 in look-ahead, and in async what makes both parts of the score of the
        fastest contiguous split equal. Raises InfeasibleError if no split exists or fits the memories, UsageError for
        an unknown mode or a negative epsilon.
        """
        return self.sweep(devices, mode, epsilons=(epsilon,), byte_weight=byte_weight)[0]

    def sweep(
        self,
        devices: Devices,
        mode: Mode = "async",
        *,
        epsilons: Sequence[float] = SWEEP,
        byte_weight: float | None = None,
    ) -> tuple[Split, ...]:
        """The best split for each epsilon (increasing): what a slower step buys in staleness and bytes."""
        if mode not in MODES:
            raise UsageError(f"mode is one of {', '.join(MODES)}; got {mode!r}")
        if not all(0 <= epsilon < math.inf for epsilon in epsilons) or sorted(epsilons) != list(epsilons):
            raise UsageError(f"epsilon is a share, 0 or more, and several must increase; got {list(epsilons)}")
        if len(devices) > self._orders[0].fine.problem.size:
            raise InfeasibleError(
                f"{len(devices)} components need as many parts, but the denoiser has only "
                f"{self._orders[0].fine.problem.size} that can be separated; use fewer devices"
            )
        attempt = _Attempt(self, devices, mode, byte_weight)
        if attempt.fastest_ms is None:
            raise InfeasibleError(self._memory_message(devices))
        found: list[Split] = []
        for epsilon in epsilons:
            best = attempt.best(epsilon)
            # what was allowed for a smaller epsilon still is
            found.append(min([*found[-1:], best], key=lambda split: split.score(attempt.byte_weight)))
        return tuple(found)

    @cached_property
    def _orders(self) -> tuple[_Order, ...]:
        """The given order, and another one if it differs."""
        given = np.arange(self.problem.size)
        orders = [_order(self.problem, given, "contiguous")]
        other = depth_first_order(self.problem)
        if not np.array_equal(given, other):
            orders.append(_order(reordered(self.problem, other), other, "reordered"))
        return tuple(orders)

    @cached_property
    def _clusters(self) -> tuple[_Level, ...]:
        """Nested levels, each half as fine as the one before."""
        levels: list[_Level] = []
        fine = self._orders[0].fine.problem
        borders = np.arange(fine.size + 1)
        limit = self._cluster_limit
        while not levels or limit >= FEWEST:
            borders = borders[cluster_borders(coarsen(fine, borders.tolist()).problem, limit)]
            coarse = coarsen(fine, borders.tolist())
            levels.append(_Level(coarse, Pieces(coarse.problem)))
            limit //= 2
        return tuple(levels)

    def _search_folds(self, devices: Devices, mode: Mode, cap_ms: float) -> tuple[_Level, FoldedSearch]:
        """The folds of the finest clusters of which there are not too many."""
        for level in self._clusters[:-1]:
            with contextlib.suppress(TooManyCandidatesError):
                return level, FoldedSearch(level.pieces, devices, mode, cap_ms)
        return self._clusters[-1], FoldedSearch(self._clusters[-1].pieces, devices, mode, cap_ms)

    def _memory_message(self, devices: Devices) -> str:
        needed = int(self.problem.item_bytes.sum())
        offered = ", ".join(
            f"{name} {memory / 1e9:.4g} GB" for name, memory in zip(devices.names, devices.memory_bytes, strict=True)
        )
        return (
            f"no split over {len(devices)} devices fits their memory: one copy of the parameters is "
            f"{needed / 1e9:.4g} GB, activations take up to {self.problem.activation_bytes.max() / 1e9:.4g} GB, and "
            f"the devices have {offered}; use more devices, larger ones, or a smaller batch or resolution"
        )


def solve(
    problem: Problem,
    devices: Devices,
    mode: Mode = "lookahead",
    *,
    epsilon: float = EPSILON,
    byte_weight: float | None = None,
) -> Split:
    """Solver(problem).solve(...); see there."""
    return Solver(problem).solve(devices, mode, epsilon=epsilon, byte_weight=byte_weight)


def _order(problem: Problem, nodes: Ints, form: str) -> _Order:
    borders = fine_borders(problem)
    if len(borders) > FINEST + 1:
        borders = borders[cluster_borders(coarsen(problem, borders.tolist()).problem, FINEST)]
    fine = coarsen(problem, borders.tolist())
    return _Order(nodes, fine, Pieces(fine.problem), form)


class _Attempt:
    """The search for one set of devices and one mode.

    fastest_ms: the least T that was found, None if nothing fits; byte_weight: as given, or the default.
    """

    def __init__(self, solver: Solver, devices: Devices, mode: Mode, byte_weight: float | None) -> None:
        self._solver, self._devices, self._mode = solver, devices, mode
        self._chains = [(order, ContiguousSearch(order.pieces, devices, mode)) for order in solver._orders]
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

    def _fastest_chain(self, order: _Order, search: ContiguousSearch) -> Split | None:
        fastest = search.fastest_ms()
        return self._best_chain(order, search, fastest) if math.isfinite(fastest) else None

    def _best_chain(self, order: _Order, search: ContiguousSearch, cap_ms: float) -> Split | None:
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
        """The fastest fold of clusters, refined; None if no fold was found that fits."""
        bound = lower_bound_ms(self._solver.problem, self._devices)
        for factor in FEASIBLE:
            cap = factor * bound if bound > 0 else math.inf
            level, search = self._solver._search_folds(self._devices, self._mode, cap)
            fold = search.fastest()
            if fold is not None:
                return self._refined(level.at_finest(fold), 0.0)
        return None

    def _folds_within(self, cap_ms: float) -> Iterator[Split]:
        if self._fastest_fold is None:
            return
        starts = [self._fastest_fold]
        level, search = self._solver._search_folds(self._devices, self._mode, cap_ms * LOOSER[-1])
        for looser in LOOSER:
            fold = search.best(cap_ms * looser, self.byte_weight)
            if fold is not None:
                starts.append(level.at_finest(fold))
        for start in starts:
            yield self._split_of_fold(self._refined(start, cap_ms))

    def _refined(self, fold: Fold, cap_ms: float) -> Fold:
        pieces = self._solver._orders[0].pieces
        return refine(pieces, fold, self._devices, self._mode, cap_ms, self.byte_weight)

    def _split_of_fold(self, fold: Fold) -> Split:
        order = self._solver._orders[0]
        owner = np.empty(order.fine.problem.size, dtype=np.int64)
        for k in range(len(self._devices)):
            owner[fold.left[k] : fold.left[k + 1]] = k
            owner[fold.right[k + 1] : fold.right[k]] = k
        return self._labelled(order.spread(owner), fold.device_of)

    def _general(self) -> list[Split]:
        """A placement of clusters without any form, for memories that no fold fits."""
        clusters = self._solver._clusters[-1].coarse  # few, since every move is evaluated anew
        placed = search_placements(clusters.problem, self._devices, self._mode, self.byte_weight)
        if placed is None:
            return []
        nodes = self._solver._orders[0].spread(clusters.spread(placed))
        return [self._labelled(nodes, tuple(range(len(self._devices))), "general")]

    def _between_branches(self) -> list[Split]:
        """METIS's split, where it is installed and what it found is possible."""
        order = self._solver._orders[0]
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
        evaluation = evaluate(self._solver.problem, assignment, self._devices, self._mode, device_of)
        return Split(tuple(assignment.tolist()), device_of, form, evaluation)


def _step_ms(split: Split) -> float:
    return split.evaluation.step_ms
