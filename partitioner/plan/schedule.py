"""Schedule: which components run which calls at each call of the denoiser, and whose messages they read. Pure.

Call c is the c-th call of a trajectory (0, 1, ...); N components, component i of N in a chain. The table has three
components and a warm-up of three calls; a number is the call that a component runs, ~ says that it reads messages of
earlier calls.

1  Exact (the warm-up, the last ``finish`` calls, or all of them): every component runs call c on call c's messages.
2  Async: every component that is due runs call c. It reads from component s the newest message that is sure to be
   there: that of call c-1 or, for a component with period p > 1, of its last run that began at least p calls ago.
3  Look-ahead: component i runs call c+N-1-i, on inputs predicted for that call, and reads that call's messages, which
   its left neighbour sent one call ago. The last warm-up call fills the pipe: while the components behind it work on
   that call, component i goes on with the N-1-i calls after it.

    at call        0    1    2    3    4    5
    1 exact     0: 0    1    2    3    4    5
                1: 0    1    2    3    4    5
                2: 0    1    2    3    4    5
    2 async     0: 0    1    2    3~   4~   5~
                1: 0    1    2    3~   4~   5~
                2: 0    1    2    3~   4~   5~
    3 look-     0: 0    1    2-4  5    6    7
      ahead     1: 0    1    2-3  4    5    6
                2: 0    1    2    3    4    5
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ComponentRun:
    """Component ``component`` runs call ``call``; reads[s] is the call whose message it reads from component s."""

    component: int
    call: int
    reads: tuple[int, ...]

    @property
    def lagged(self) -> bool:
        """Whether it reads messages of earlier calls."""
        return any(read != self.call for read in self.reads)


@dataclass(frozen=True)
class Schedule:
    """What every component runs at each call of a trajectory.

    Args:
        components: Length of the chain, N.
        mode: "exact", "async" or "lookahead".
        warmup: Exact first calls, at least 1.
        periods: Every how many calls each component recomputes.
        calls: Length of the trajectory where it is known; look-ahead then runs no call beyond the last.
        finish: Exact last calls, counted only where the length is known.

    >>> Schedule(2, "lookahead", 2, (1, 1), calls=5).runs(1)[-1]
    ComponentRun(component=0, call=2, reads=(2, 2))
    """

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
                last = call + self.components - 1 - i
                first = self.warmup if call == self.warmup - 1 else max(self.warmup + self.components - 1 - i, last)
                for ahead in range(first, last + 1):
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
