"""BenchSettings: what the benchmark runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from partitioner.plan.predictor import PredictorName

RANKS = 2


@dataclass(frozen=True)
class BenchSettings:
    """What to run.

    Attributes:
        microbatches: parts of the batch of an exact call.
        predictor: of lagged boundary tensors; None leaves it to the planner.
        steps: of a trajectory.
        warmup: exact first steps of it.
        rounds: how often everything is measured.
        period: every how many steps the first component of a multi-rate plan recomputes; 1 runs no such plan.
        profile: file with recorded costs; None measures them.
    """

    microbatches: int = 1
    predictor: PredictorName | None = None
    steps: int = 50
    warmup: int = 1
    rounds: int = 5
    period: int = 1
    profile: Path | None = None
