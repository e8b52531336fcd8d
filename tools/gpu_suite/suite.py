"""GpuSuite: runs parts within a time limit, several at once, each as a process, and resumes where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tools.gpu_suite.parts import SuitePart

TRIES = 2
POLL_S = 0.05
SAID = 300  # characters of an error


class PartProcess(Protocol):
    """A process that runs a part."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def end(self) -> None:
        """Kill it and all that it has started, if there is any."""


StartPart = Callable[[SuitePart, int, Path], PartProcess]  # part, its turn, its log -> the process


@dataclass(eq=False)
class _Try:
    part: SuitePart
    process: PartProcess
    log: Path
    start: float
    limit_s: float


class GpuSuite:
    """The parts, and their state as the files in the folder show it.

    A part that has its document, ``NAME.json``, is done; every failure leaves a log of its own.

    Args:
        parts: in order of worth.
        folder: where documents and logs are.
        start: starts a part.
        say: is told what begins and ends.
        keep: called whenever a part has ended.
        jobs: how many parts may run at once; what they time they time one after the other (tools.gpu_suite.card).
    """

    def __init__(
        self,
        parts: Sequence[SuitePart],
        folder: Path,
        start: StartPart,
        say: Callable[[str], None],
        keep: Callable[[], None] = lambda: None,
        jobs: int = 1,
    ) -> None:
        self._parts = list(parts)
        self._folder = folder
        self._start = start
        self._say = say
        self._keep = keep
        self._jobs = jobs
        self._running: list[_Try] = []

    def run_for(self, seconds: float) -> None:
        """Run what is missing until the time is over; then all that still runs is killed."""
        end = time.monotonic() + seconds
        try:
            while True:
                self._end_tries()
                while len(self._running) < self._jobs and (part := self._next(end - time.monotonic())) is not None:
                    self._begin(part, end - time.monotonic())
                if not self._running:
                    break
                time.sleep(POLL_S)
        finally:
            for attempt in self._running:
                attempt.process.end()
            self._running.clear()
            self._keep()
        if waiting := self.missing():
            self._say(f"too little time is left for {waiting[0].name}: run the same command again")

    def is_done(self, part: SuitePart) -> bool:
        return (self._folder / f"{part.name}.json").exists()

    def failures(self, part: SuitePart) -> int:
        """How often a part failed; one that the end of the time cut short has not failed."""
        return sum(1 for number in range(TRIES) if self._failed(part, number).exists())

    def missing(self) -> list[SuitePart]:
        """The parts that are still to be run, in order."""
        open_ = [part for part in self._parts if not self.is_done(part) and self.failures(part) < TRIES]
        return sorted(open_, key=self.failures)

    def table(self) -> str:
        """One line per part: done, failed or not run."""
        states = {
            part.name: "done" if self.is_done(part) else "failed" if self.failures(part) else "not run"
            for part in self._parts
        }
        return "\n".join(f"{state:<8} {name}" for name, state in states.items())

    def _next(self, left_s: float) -> SuitePart | None:
        """The first part that can begin now: what it needs has been tried, and the time is enough for it."""
        busy = {attempt.part.name for attempt in self._running}
        untried = {p.name for p in self._parts if not self.is_done(p) and not self.failures(p)}
        for part in self.missing():
            if part.name not in busy and not (untried | busy) & set(part.after) and left_s >= part.least_s:
                return part
        return None

    def _begin(self, part: SuitePart, left_s: float) -> None:
        limit_s = min(part.limit_s, left_s)
        self._say(f"{part.name}: at most {limit_s:.0f} s")
        log = self._folder / f"{part.name}.log"
        process = self._start(part, self._parts.index(part), log)
        self._running.append(_Try(part, process, log, time.monotonic(), limit_s))

    def _end_tries(self) -> None:
        for attempt in list(self._running):
            status = attempt.process.poll()
            took = time.monotonic() - attempt.start
            if status is None and took < attempt.limit_s:
                continue
            attempt.process.end()
            self._running.remove(attempt)
            how, error = "out of time" if status is None else f"ended with {status}", ""
            if self.is_done(attempt.part):
                how = "done"
            elif status is not None or attempt.limit_s >= attempt.part.limit_s:
                error = _last_line(attempt.log)
                attempt.log.replace(self._failed(attempt.part, self.failures(attempt.part)))
            self._say(f"{attempt.part.name}: {how} after {took:.0f} s{error}")
            self._keep()

    def _failed(self, part: SuitePart, number: int) -> Path:
        return self._folder / f"{part.name}.failed-{number + 1}.log"


def _last_line(log: Path) -> str:
    """What a part said last, as the end of a sentence: of one that failed, its error."""
    said = log.read_text(errors="replace").strip().rpartition("\n")[2]
    return f": {said[:SAID]}" if said else ""
