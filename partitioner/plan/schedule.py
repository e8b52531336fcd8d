"""Schedule: which components run which evaluations at a denoiser call, and which messages they read. Pure.

Legend: call c is the c-th denoiser call of a trajectory (0, 1, ...); N components, component i of N in a chain.

Exact (c < warmup, the last ``finish`` calls, or all of them): every component runs call c and reads call c's messages.
Async: every component i that is due runs call c and reads from component s the newest message that is sure to be
there: of call c-1, or for a component with period p > 1 of its last run that began at least p calls ago.
Look-ahead: component i runs call c+N-1-i, on inputs predicted for that call, and reads that call's messages, which
were sent one call ago by its left neighbour. During the last warm-up calls this fills the pipe.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ComponentRun:
    """Component ``component`` runs call ``call``; reads[s]: the call whose message it reads from component s."""

    component: int
    call: int
    reads: tuple[int, ...]

    @property
    def lagged(self) -> bool:
        """Whether it reads messages of earlier calls."""
        return any(read != self.call for read in self.reads)


@dataclass(frozen=True)
class Schedule:
    """mode: "exact", "async" or "lookahead". calls: length of the trajectory where known (look-ahead needs it).
    finish: exact last calls, counted only where the length is known."""

    components: int
    mode: str
    warmup: int
    periods: tuple[int, ...]
    calls: int | None = None
    finish: int = 0

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise ValueError(f"warmup must be at least 1 (the first call has nothing to read from), got {self.warmup}")

    def runs(self, call: int) -> list[ComponentRun]:
        """What to run at a call, in the order in which each component is to run it."""
        runs: list[ComponentRun] = []
        everyone = range(self.components)
        if self.is_exact(call):
            runs += [ComponentRun(i, call, (call,) * self.components) for i in everyone]
        elif self.mode == "async":
            reads = tuple(self._newest(source, call) for source in everyone)
            runs += [ComponentRun(i, call, reads) for i in everyone if self._due(i, call)]
        if self.mode == "lookahead" and self.components > 1:
            for i in everyone:
                ahead = call + self.components - 1 - i
                if not self.is_exact(ahead) and (self.calls is None or ahead < self.calls):
                    runs.append(ComponentRun(i, ahead, (ahead,) * self.components))
        return runs

    def is_exact(self, call: int) -> bool:
        """Whether a call's output is the denoiser's own on the call's own input."""
        finishing = self.calls is not None and call >= self.calls - self.finish
        return call < self.warmup or finishing or self.mode == "exact" or self.components == 1

    def _due(self, component: int, call: int) -> bool:
        return call < self.warmup or (call - self.warmup) % self.periods[component] == 0

    def _newest(self, source: int, call: int) -> int:
        """The newest call of ``source`` whose message a lagged read at ``call`` may use."""
        period = self.periods[source]
        for earlier in range(call - 1, self.warmup - 1, -1):
            if self._due(source, earlier) and earlier <= call - period:
                return earlier
        return self.warmup - 1
