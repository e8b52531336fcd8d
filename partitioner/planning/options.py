"""Options: what a user may ask the planner for."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from partitioner.errors import UsageError
from partitioner.plan.fields import PredictorName
from partitioner.search.mode import Mode

Prefer = Literal["quality", "speed", "memory"]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may ask for; None leaves the choice to the planner.

    period: every how many steps all components but the last recompute. memory_limit_bytes: of each device, on top of
    what its data sheet says. driver_ms: the pipeline's own work per step (guidance, the scheduler), done by rank 0.
    prove: look for a certificate with HiGHS. force: also a plan that is
    predicted to be slower than one device.
    """

    branches: int | None = None
    mode: Mode | None = None
    period: int = 1
    warmup: int | None = None
    predictor: PredictorName | None = None
    prefer: Prefer = "quality"
    memory_limit_bytes: float | None = None
    driver_ms: float = 0.0
    prove: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.branches not in (None, 1, 2):
            raise UsageError(f"branches is 1, 2 or left out; got {self.branches}")
        if not 1 <= self.period <= 64:
            raise UsageError(f"period is {self.period}; expected 1 to 64")
        if self.warmup is not None and not 1 <= self.warmup <= 10_000:
            raise UsageError(f"warm-up is {self.warmup} steps; expected 1 to 10000")
        if self.memory_limit_bytes is not None and not self.memory_limit_bytes > 0:
            raise UsageError(f"the memory limit is {self.memory_limit_bytes / 1e9:g} GB; expected more than 0")
        if not 0 <= self.driver_ms < math.inf:
            raise UsageError(f"the driver's work is {self.driver_ms} ms per step; expected 0 or more")
        if self.period > 1 and self.mode == "lookahead":
            raise UsageError("look-ahead recomputes every component in every step; use --period 1 or --mode async")
        if self.prove and self.period > 1:
            raise UsageError("a proof is for components that compute in every step; use --period 1")
        if self.prove and importlib.util.find_spec("highspy") is None:
            raise UsageError("a proof needs HiGHS; install it: pip install 'diffusion-partitioner[prove]'")


DEFAULTS = Options()
DEFAULT_WARMUP = 4  # what quality was measured with


def default_warmup(components: int) -> int:
    """Exact steps at the start: none is needed but one where nothing lags; a chain's pipe is filled meanwhile."""
    return 1 if components == 1 else max(DEFAULT_WARMUP, components)
