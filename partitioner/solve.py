"""solve: a Problem and devices in, the best split found out. Pure numpy; every result is re-computed by ``evaluate``.

Objective, in order: step time T; then, among splits with T <= (1 + epsilon) x the best T, staleness (in plain async) +
byte_weight x bytes. Look-ahead searches chains, async also folds. Deterministic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from partitioner.clusters import fine_borders
from partitioner.contiguous import Chain, ContiguousSearch
from partitioner.errors import InfeasibleError, UsageError
from partitioner.evaluate import Evaluation, evaluate
from partitioner.pieces import Pieces
from partitioner.problem import MODES, Coarse, Devices, Mode, Problem, coarsen

EPSILON = 0.005
ROUNDING = 1e-9  # relative; sums of the same costs in another order differ by less


@dataclass(frozen=True)
class Split:
    """assignment: component of each node; device_of: device of each component; form: "contiguous" or "folded".

    The last component makes the denoiser's output.
    """

    assignment: tuple[int, ...]
    device_of: tuple[int, ...]
    form: str
    evaluation: Evaluation


class Solver:
    """Splits one Problem, over any devices; what depends on the Problem alone is computed once."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @cached_property
    def _fine(self) -> Coarse:
        return coarsen(self.problem, fine_borders(self.problem).tolist())

    @cached_property
    def _fine_pieces(self) -> Pieces:
        return Pieces(self._fine.problem)

    def solve(
        self, devices: Devices, mode: Mode = "lookahead", *, epsilon: float = EPSILON, byte_weight: float | None = None
    ) -> Split:
        """The best split over all the devices, one component each.

        epsilon: how much slower than the fastest split the result may be, as a share. byte_weight: staleness that one
        byte per step is worth; by default 1 in look-ahead, and in async what makes both parts of the score of the
        fastest contiguous split equal. Raises InfeasibleError if no split exists or fits the memories, UsageError for
        an unknown mode or a negative epsilon.
        """
        if mode not in MODES:
            raise UsageError(f"mode is one of {', '.join(MODES)}; got {mode!r}")
        if not 0 <= epsilon < math.inf:
            raise UsageError(f"epsilon is a share, 0 or more; got {epsilon}")
        if len(devices) > self._fine.problem.size:
            raise InfeasibleError(
                f"{len(devices)} components need as many parts, but the denoiser has only "
                f"{self._fine.problem.size} that can be separated; use fewer devices"
            )
        search = ContiguousSearch(self._fine_pieces, devices, mode)
        fastest = search.fastest_ms()
        if not math.isfinite(fastest):
            raise InfeasibleError(self._memory_message(devices))
        chain = search.best(fastest * (1 + epsilon + ROUNDING), 1.0 if byte_weight is None else byte_weight)
        assert chain is not None
        return self._split(chain, devices, mode)

    def _split(self, chain: Chain, devices: Devices, mode: Mode) -> Split:
        lengths = np.diff(chain.borders)
        assignment = self._fine.spread(np.repeat(np.arange(len(devices)), lengths))
        evaluation = evaluate(self.problem, assignment, devices, mode, chain.device_of)
        return Split(tuple(assignment.tolist()), chain.device_of, "contiguous", evaluation)

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
