"""PlanOptions: what a user may ask the planner for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from partitioner.errors import UsageError
from partitioner.limits import (
    MOST_BRANCHES,
    MOST_GB,
    MOST_PERIOD,
    MOST_STEPS,
    check_one_of,
    check_real,
    check_whole,
)
from partitioner.plan.predictor import PREDICTORS, PredictorName
from partitioner.search.mode import MODES, Mode

Prefer = Literal["quality", "speed", "memory"]
PREFERENCES: tuple[Prefer, ...] = get_args(Prefer)
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a user may ask for; None leaves the choice to the planner. A contradiction is a UsageError at once.

    Attributes:
        branches: How many parts of the work are computed apart, each on devices of its own; see ``Branching``.
        mode: How components overlap.
        period: Every how many steps all components but the last recompute.
        warmup: Exact steps at the start of a trajectory.
        predictor: What turns earlier values of a boundary tensor into an estimate of the current one.
        prefer: By what the plan is chosen among those that are possible; see ``choose``.
        memory_limit_bytes: Of each device, where that is less than what its data sheet says.
        refine: Measure the components whole, rescale the costs of their nodes, and solve again.
        prove: Prove how near the step time is to the least that is possible (needs HiGHS).
        force: Make a plan even if it is predicted to be slower than one device.

    >>> PlanOptions(period=2, mode="lookahead")
    Traceback (most recent call last):
    partitioner.errors.UsageError: look-ahead recomputes every component in every step; use --period 1 or --mode async
    """

    branches: int | None = None
    mode: Mode | None = None
    period: int = 1
    warmup: int | None = None
    predictor: PredictorName | None = None
    prefer: Prefer = "quality"
    memory_limit_bytes: float | None = None
    refine: bool = False
    prove: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        check_whole("period", self.period, 1, MOST_PERIOD)
        if self.branches is not None:
            check_whole("branches", self.branches, 1, MOST_BRANCHES)
        if self.warmup is not None:
            check_whole("warmup", self.warmup, 1, MOST_STEPS)
        if self.memory_limit_bytes is not None:
            check_real("memory_limit_bytes", self.memory_limit_bytes, 1, MOST_GB * 1e9)
        check_one_of("mode", self.mode, (None, *MODES))
        check_one_of("predictor", self.predictor, (None, *PREDICTORS))
        check_one_of("prefer", self.prefer, PREFERENCES)
        if self.period > 1 and self.mode == "lookahead":
            raise UsageError("look-ahead recomputes every component in every step; use --period 1 or --mode async")
        if self.prove and self.period > 1:
            raise UsageError("a proof is for components that compute in every step; use --period 1")
        if self.prove and importlib.util.find_spec("highspy") is None:
            raise UsageError("a proof needs HiGHS; install it: pip install 'diffusion-partitioner[prove]'")


DEFAULTS = PlanOptions()
DEFAULT_WARMUP = 4  # exact steps


def default_warmup(components: int, mode: Mode) -> int:
    """How many exact steps a trajectory starts with where the user does not say.

    Args:
        components: Of one branch. One component is always exact and needs a single step.
        mode: Of the steps after them. In look-ahead, which needs two, the engine's guard adds what more is needed; the
            longer the chain, the more of the latents it has to foresee.
    """
    if components == 1:
        return 1
    return components if mode == "lookahead" else max(DEFAULT_WARMUP, components)
