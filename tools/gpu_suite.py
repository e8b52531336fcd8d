"""gpu_suite: everything that waits for a GPU, in order of worth: tests, profiles, times of components, concurrency.

python -m tools.gpu_suite --output build/gpu --minutes 9.5

One GPU is enough. Each part runs in a process of its own, with a limit of its own, and leaves a JSON document and a
log in the folder. Give the same command again to go on: a part whose document is there is not run again, and one that
failed is tried once more when all others have been. --denoiser small --device cpu tries the suite out without a GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

DENOISERS = ("sd15", "sd21", "sdxl", "svd", "animatediff", "sd3", "flux")
CONCURRENT = ("sd15", "sdxl", "sd3")  # of these also what runs at once; the engine with the first of them
TRIES = 2

Run = Callable[[Sequence[str], float, Path], int | None]  # command, limit in s, log -> status, None: it ran too long


@dataclass(frozen=True)
class Part:
    """name: of its document. command: arguments to python -m. limit_s: some three times what it should need."""

    name: str
    command: tuple[str, ...]
    limit_s: float


def plan_parts(names: Sequence[str], device: str, folder: Path) -> list[Part]:
    """All parts, in order; those that need a GPU only where the device is one."""
    on_gpu = device != "cpu"

    def part(name: str, kind: str, of: str, limit_s: float) -> Part:
        command = ("tools.gpu_parts", kind, "--denoiser", of, "--device", device, "--output", str(folder))
        return Part(name, command, limit_s)

    def for_each(kind: str, of: Sequence[str], limit_s: float) -> list[Part]:
        return [part(f"{kind}-{name}", kind, name, limit_s) for name in of]

    every = ",".join(names)
    concurrent = [name for name in names if name in CONCURRENT] or list(names[:1])
    return [
        *([part("tests", "tests", every, 420)] if on_gpu else []),
        part("traces", "traces", every, 300),
        *for_each("profile", names, 180),
        *for_each("components", names, 180),
        *(for_each("concurrency", concurrent, 120) if on_gpu else []),
        *for_each("engine", concurrent[:1], 240),
        *for_each("compiled", names, 300),
    ]


class Suite:
    """The parts, and what the folder says of them."""

    def __init__(self, parts: Sequence[Part], folder: Path, run: Run, say: Callable[[str], None]) -> None:
        self._parts = parts
        self._folder = folder
        self._run = run
        self._say = say

    def run_for(self, seconds: float) -> None:
        """Run what is missing, until that much time has passed; no part that half its limit could not be given to."""
        end = time.monotonic() + seconds
        while waiting := self.missing():
            left = end - time.monotonic()
            part = next((part for part in waiting if left >= part.limit_s / 2), None)
            if part is None:
                self._say(f"{max(left, 0):.0f} s are left, too few for {waiting[0].name}: run the same command again")
                return
            self._try(part, min(part.limit_s, left))

    def is_done(self, part: Part) -> bool:
        return (self._folder / f"{part.name}.json").exists()

    def failures(self, part: Part) -> int:
        """How often it failed; being cut short by the end of the time is no failure."""
        return sum(1 for number in range(TRIES) if self._failed(part, number).exists())

    def missing(self) -> list[Part]:
        """What is to be run, in order."""
        open_ = [part for part in self._parts if not self.is_done(part) and self.failures(part) < TRIES]
        return sorted(open_, key=self.failures)

    def _failed(self, part: Part, number: int) -> Path:
        return self._folder / f"{part.name}.failed-{number + 1}.log"

    def _try(self, part: Part, limit_s: float) -> None:
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
        """What has become of every part."""
        states = {
            part.name: "done" if self.is_done(part) else "failed" if self.failures(part) else "not run"
            for part in self._parts
        }
        return "\n".join(f"{state:<8} {name}" for name, state in states.items())


def run_command(command: Sequence[str], limit_s: float, log: Path) -> int | None:
    """Run ``python -m command``, its output in the log; None where it had to be killed at its limit."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every part has its document, else 1; 2 for a wrong option."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_suite", description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="documents, profiles and logs")
    parser.add_argument("--minutes", type=float, default=9.5, metavar="M", help="time for this command (default 9.5)")
    parser.add_argument("--device", default="cuda:0", help="cuda:0 (default) or cpu")
    parser.add_argument("--denoiser", action="append", metavar="NAME", help=f"default: {', '.join(DENOISERS)}")
    parser.add_argument("--part", action="append", metavar="NAME", help="only these, such as profile-sd15")
    parser.add_argument("--list", action="store_true", help="say what would be run and what has become of it")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    parts = plan_parts(options.denoiser or DENOISERS, options.device, options.output)
    if unknown := set(options.part or ()) - {part.name for part in parts}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(part.name for part in parts)}")
    parts = [part for part in parts if not options.part or part.name in options.part]
    suite = Suite(parts, options.output, run_command, lambda text: print(text, file=sys.stderr, flush=True))
    if not options.list:
        suite.run_for(options.minutes * 60)
    print(suite.table())
    return 0 if all(suite.is_done(part) for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
