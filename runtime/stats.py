"""Stats: what an engine has done since its start."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.ranks.rank_report import Report


@dataclass(frozen=True)
class Stats:
    """What has been done since the start. steps: denoiser calls of the engine, exact_steps those without lag;
    exact_ms, async_ms: mean time of an exact and of another call, None where there was none. ranks: by rank."""

    steps: int
    exact_steps: int
    exact_ms: float | None
    async_ms: float | None
    ranks: tuple[Report, ...]
