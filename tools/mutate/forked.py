"""run_forked: a command's main in a forked process, with limits; what it costs to import is paid once."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Limits:
    """What one run may take; the machine is kept from harm by limits of twice as much memory.

    Attributes:
        cpu_s: Of processor time.
        wall_s: Until it is killed, for what waits and does not compute.
        memory_bytes: More than the process that it is forked from has.
    """

    cpu_s: int = 10
    wall_s: float = 120.0
    memory_bytes: int = 1 << 30


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Attributes:
        code: The exit code; minus a signal's number.
        output: What it wrote to stderr.
        cpu_s: Processor time.
        wall_s: From beginning to end.
        memory_bytes: The most that it had more than the process that it was forked from.
    """

    code: int
    output: str
    cpu_s: float
    wall_s: float
    memory_bytes: int


def run_forked(main: Callable[[Sequence[str]], int], arguments: Sequence[str], folder: Path, limits: Limits) -> RunEnd:
    """Run a command as its console script would, in a process of its own.

    Args:
        main: The command; returns its exit code.
        arguments: Of the command.
        folder: The working directory; what it prints is kept in it.
        limits: What it may take.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(main, arguments, folder, limits)
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() - started > limits.wall_s:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    took = time.monotonic() - started
    output = (folder / "stderr").read_text(errors="replace")
    before = int((folder / "memory").read_text())
    return RunEnd(
        os.waitstatus_to_exitcode(status),
        output,
        usage.ru_utime + usage.ru_stime,
        took,
        max(0, usage.ru_maxrss * 1024 - before),
    )


def _become(main: Callable[[Sequence[str]], int], arguments: Sequence[str], folder: Path, limits: Limits) -> None:
    """In the child: run the command, and end as the interpreter would."""
    code = 1
    try:
        os.chdir(folder)
        Path("memory").write_text(str(psutil.Process().memory_info().rss))
        for descriptor, path, mode in ((0, os.devnull, os.O_RDONLY), (1, "stdout", _WRITE), (2, "stderr", _WRITE)):
            opened = os.open(path, mode, 0o600)
            os.dup2(opened, descriptor)
            os.close(opened)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s + 1, limits.cpu_s + 2))
        most = psutil.Process().memory_info().data + 2 * limits.memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
