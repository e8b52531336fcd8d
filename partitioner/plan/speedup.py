"""The speed-up of a plan over a whole trajectory, its exact calls included."""

from __future__ import annotations

from partitioner.models.samplers import denoiser_calls, exact_calls
from partitioner.search.mode import Mode


def trajectory_speedup(
    steps: int,
    scheduler: str | None,
    mode: Mode,
    warmup: int,
    *,
    sequential_ms: float,
    first_step_ms: float,
    exact_step_ms: float,
    step_ms: float,
    config: str = "",
    exact_share: float | None = None,
) -> float:
    """Over a trajectory of so many steps, its exact calls at their cost; times of all calls of one step.

    scheduler: a class of diffusers; None for one that calls the denoiser once per step. config: its configuration.
    exact_share: of the calls that are exact, if it is known that they are more than warm-up and last ones.
    first_step_ms: of the first, which is exact; where streams have branches of their own, none is foreseen in it.
    """
    calls = denoiser_calls(scheduler, steps, config)
    exact = int(min(max(exact_calls(scheduler, mode, warmup, config), round((exact_share or 0.0) * calls)), calls))
    total = first_step_ms + (exact - 1) * exact_step_ms + (calls - exact) * step_ms
    return round(sequential_ms * calls / total, 6) if total > 0 else 1.0
