"""Solver: a Problem and devices in, the best split that is found out. Pure numpy; ``evaluate`` gives its figures.

Objective, in order: the step time T; then, among splits with T <= (1 + epsilon) x the best T, staleness (in async mode)
+ byte_weight x bytes. Look-ahead searches chains, async mode folds as well. The same input gives the same split.

    1  contiguous splits: exact dynamic program at the finest level, in two execution orders      chains
    2  folds of clusters: exact dynamic program, for several caps on T                            folds
    3  the borders of these folds are moved at the finest level                                   descent
    4  async mode: METIS's split where pymetis is installed; where no memory holds any of 1 to 3,
       placements of any form by local search                                                     metis, local_search

The best of all is taken. None of 2 to 4 is sure to find the optimum of all placements: ``certificate`` says by how much
a split can be above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from partitioner.errors import InfeasibleError, UsageError
from partitioner.search.attempt import Attempt
from partitioner.search.devices import Devices
from partitioner.search.levels import Levels
from partitioner.search.mode import MODES, Mode
from partitioner.search.problem import Problem
from partitioner.search.split import Split

EPSILON = 0.005
SWEEP = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
CLUSTERS = 120


class Solver:
    """Splits one Problem, over any devices; what depends on the Problem alone is computed once.

    clusters: how many the folded search moves, at most.
    """

    def __init__(self, problem: Problem, *, clusters: int = CLUSTERS) -> None:
        self.problem = problem
        self._levels = Levels(problem, clusters)

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
        parts = self._levels.orders[0].fine.problem.size
        if len(devices) > parts:
            raise InfeasibleError(
                f"{len(devices)} components need as many parts, but the denoiser has only {parts} that can be "
                f"separated; use fewer devices"
            )
        attempt = Attempt(self.problem, self._levels, devices, mode, byte_weight)
        if attempt.fastest_ms is None:
            raise InfeasibleError(self._memory_message(devices))
        found: list[Split] = []
        for epsilon in epsilons:
            best = attempt.best(epsilon)
            # what was allowed for a smaller epsilon still is
            found.append(min([*found[-1:], best], key=lambda split: split.score(attempt.byte_weight)))
        return tuple(found)

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
