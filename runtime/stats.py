"""Stats: what an engine has done since its start."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.ranks.rank_report import Report


@dataclass(frozen=True)
class Stats:
    """What an engine has done since its start. A step is one call of the denoiser.

    Attributes:
        steps: denoiser calls, of all modes.
        exact_steps: calls whose output was the denoiser's own: warm-up, the last calls of some samplers, exact mode.
        lookahead_steps: calls that were run in look-ahead.
        async_steps: calls that were run async: in async mode, or without a guard where look-ahead was not possible.
        exact_ms: mean wall time of an exact call; None where there was none.
        lookahead_ms: of a look-ahead call.
        async_ms: of an async call.
        ranks: what each rank has done, by rank.
        foreseen_calls: calls of a step's other streams that were begun with its first one, on branches of their own,
            and then made as foreseen.
        wasted_calls: calls that were begun so, and then not made or made with other arguments.
        discarded_calls: calls that were computed and then computed again, since the denoiser had been changed before.
        exact_reasons: why calls were exact, such as "warm-up" or "another prompt" -> how many.
        uncovered_calls: attribute of the pipeline -> calls of the second denoiser there, which no plan covers and which
            are not counted above.
    """

    steps: int
    exact_steps: int
    lookahead_steps: int
    async_steps: int
    exact_ms: float | None
    lookahead_ms: float | None
    async_ms: float | None
    ranks: tuple[Report, ...]
    exact_reasons: Mapping[str, int] = field(default_factory=dict)
    uncovered_calls: Mapping[str, int] = field(default_factory=dict)
    foreseen_calls: int = 0
    wasted_calls: int = 0
    discarded_calls: int = 0

    @property
    def mode(self) -> str:
        """How the calls after the exact ones were run: "lookahead", "async", "lookahead and async"; else "exact"."""
        run = [name for name, steps in (("lookahead", self.lookahead_steps), ("async", self.async_steps)) if steps]
        return " and ".join(run) or "exact"


class CallTimes:
    """The number of an engine's calls and their time, by mode: "exact", "lookahead" or "async".

    Attributes:
        foreseen: calls that were foreseen.
        wasted: calls that were foreseen and not made so.
        discarded: calls that were computed twice.
    """

    def __init__(self) -> None:
        self._calls: dict[str, int] = defaultdict(int)
        self._seconds: dict[str, float] = defaultdict(float)
        self._reasons: Counter[str] = Counter()
        self.foreseen = 0
        self.wasted = 0
        self.discarded = 0

    def add(self, mode: str, seconds: float, reason: str | None = None) -> None:
        """Count a call that was run in a mode and took so long. reason: why it was exact; None where it was not."""
        if reason is not None:
            self._reasons[reason] += 1
        self._calls[mode] += 1
        self._seconds[mode] += seconds

    @property
    def steps(self) -> int:
        """How many there are so far."""
        return sum(self._calls.values())

    def stats(self, ranks: tuple[Report, ...], uncovered_calls: Mapping[str, int]) -> Stats:
        """The figures so far, with what the ranks report and the calls that passed the engine by."""
        return Stats(
            steps=self.steps,
            exact_steps=self._calls["exact"],
            lookahead_steps=self._calls["lookahead"],
            async_steps=self._calls["async"],
            exact_ms=self._mean_ms("exact"),
            lookahead_ms=self._mean_ms("lookahead"),
            async_ms=self._mean_ms("async"),
            ranks=ranks,
            exact_reasons=dict(self._reasons.most_common()),
            uncovered_calls=dict(uncovered_calls),
            foreseen_calls=self.foreseen,
            wasted_calls=self.wasted,
            discarded_calls=self.discarded,
        )

    def _mean_ms(self, mode: str) -> float | None:
        return 1e3 * self._seconds[mode] / self._calls[mode] if self._calls[mode] else None
