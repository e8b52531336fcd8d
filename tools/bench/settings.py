"""BenchSettings: what the benchmark runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from partitioner.plan.fields import PredictorName

RANKS = 2


@dataclass(frozen=True)
class BenchSettings:
    """What to run. microbatches: of exact calls. period: of multi-rate components; 1: none are run. profile: a saved
    one; None: measure."""

    microbatches: int = 1
    predictor: PredictorName | None = None
    steps: int = 50
    warmup: int = 1
    rounds: int = 5
    period: int = 1
    profile: Path | None = None
