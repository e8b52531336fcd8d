"""GpuSuite: runs parts within a time limit, each in a process of its own, and resumes where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.gpu_suite.parts import SuitePart

TRIES = 2

PartRunner = Callable[
    [Sequence[str], float, Path], int | None
]  # command, limit in s, log -> status, None: it ran too long


class GpuSuite:
    """The parts, and their state as the files in the folder show it."""

    def __init__(self, parts: Sequence[SuitePart], folder: Path, run: PartRunner, say: Callable[[str], None]) -> None:
        self._parts = parts
        self._folder = folder
        self._run = run
        self._say = say

    def run_for(self, seconds: float) -> None:
        """Run what is missing until the time is over; a part only starts where at least half its limit is left."""
        end = time.monotonic() + seconds
        while waiting := self.missing():
            left = end - time.monotonic()
            part = next((part for part in waiting if left >= part.limit_s / 2), None)
            if part is None:
                self._say(f"{max(left, 0):.0f} s are left, too few for {waiting[0].name}: run the same command again")
                return
            self._try(part, min(part.limit_s, left))

    def is_done(self, part: SuitePart) -> bool:
        return (self._folder / f"{part.name}.json").exists()

    def failures(self, part: SuitePart) -> int:
        """How often a part failed; one that the end of the time cut short has not failed."""
        return sum(1 for number in range(TRIES) if self._failed(part, number).exists())

    def missing(self) -> list[SuitePart]:
        """The parts that are still to be run, in order."""
        open_ = [part for part in self._parts if not self.is_done(part) and self.failures(part) < TRIES]
        return sorted(open_, key=self.failures)

    def _failed(self, part: SuitePart, number: int) -> Path:
        return self._folder / f"{part.name}.failed-{number + 1}.log"

    def _try(self, part: SuitePart, limit_s: float) -> None:
        self._say(f"{part.name}: at most {limit_s:.0f} s")
        start = time.monotonic()
        log = self._folder / f"{part.name}.log"
        status = self._run(part.command, limit_s, log)
        how = "out of time" if status is None else f"ended with {status}"
        if self.is_done(part):
            how = "done"
        elif status is not None or limit_s >= part.limit_s:
            log.replace(self._failed(part, self.failures(part)))
        self._say(f"{part.name}: {how} after {time.monotonic() - start:.0f} s")

    def table(self) -> str:
        """One line per part: done, failed or not run."""
        states = {
            part.name: "done" if self.is_done(part) else "failed" if self.failures(part) else "not run"
            for part in self._parts
        }
        return "\n".join(f"{state:<8} {name}" for name, state in states.items())


def run_command(command: Sequence[str], limit_s: float, log: Path) -> int | None:
    """Run ``python -m command``, its output in the log; None where it was killed at its limit."""
    # as many hardware queues as there may be streams: with fewer, streams that share one wait for each other
    environment = dict(os.environ, PYTHONUNBUFFERED="1", CUDA_DEVICE_MAX_CONNECTIONS="32")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that what it starts ends with it
        )
        try:
            return process.wait(timeout=limit_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise
