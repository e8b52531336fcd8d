"""run_forked: a command's main in a forked process, with limits; what it costs to import is paid once."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        result: What it wrote to stdout.
        cpu_s: Processor time.
        wall_s: From beginning to end.
        memory_bytes: The most that it had more than the process that it was forked from.
        touched: Files in its folder, temporary ones included, that it made, changed or removed.
        processes: How many it left running.
    """

    code: int
    output: str
    cpu_s: float
    wall_s: float
    memory_bytes: int
    result: str = ""
    touched: tuple[str, ...] = ()
    processes: int = 0


def run_forked(main: Callable[[Sequence[str]], int], arguments: Sequence[str], folder: Path, limits: Limits) -> RunEnd:
    """Run a command as its console script would, in a process of its own.

    Args:
        main: The command; returns its exit code.
        arguments: Of the command.
        folder: The working directory, in which temporary files are made, too.
        limits: What it may take.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before, own = _files(folder), Path(tempfile.mkdtemp(prefix="run-"))
    with _orphans_end_here() as left:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(main, arguments, folder, own, limits)
        while True:
            found, status, usage = os.wait4(child, os.WNOHANG)
            if found:
                break
            if time.monotonic() - started > limits.wall_s:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
        took = time.monotonic() - started
    had, after = int((own / "memory").read_text()), _files(folder)
    printed = {name: (own / name).read_text(errors="replace") for name in ("stdout", "stderr")}
    shutil.rmtree(own)
    return RunEnd(
        os.waitstatus_to_exitcode(status),
        printed["stderr"],
        usage.ru_utime + usage.ru_stime,
        took,
        max(0, usage.ru_maxrss * 1024 - had),
        printed["stdout"],
        tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))),
        len(left),
    )


@contextmanager
def _orphans_end_here() -> Iterator[list[psutil.Process]]:
    """Inside it processes whose parent ends become this one's; the list has, after it, those that had to be killed."""
    others = {each.pid for each in psutil.Process().children()}
    killed: list[psutil.Process] = []
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield killed
        left = [each for each in psutil.Process().children() if each.pid not in others]
        killed += psutil.wait_procs(left, timeout=_SECONDS_TO_END)[1]
        for each in killed:
            each.kill()
            each.wait()
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all that is in a folder, links not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in folders + files):
            info = path.lstat()
            is_folder = stat.S_ISDIR(info.st_mode)
            found[str(path.relative_to(folder))] = (0, 0) if is_folder else (info.st_size, info.st_mtime_ns)
    return found


def _become(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str], folder: Path, own: Path, limits: Limits
) -> None:
    """In the child: run the command, and end as the interpreter would."""
    code = 1
    try:
        os.chdir(folder)
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        (own / "memory").write_text(str(psutil.Process().memory_info().rss))
        for descriptor, path, mode in (
            (0, os.devnull, os.O_RDONLY), (1, str(own / "stdout"), _WRITE), (2, str(own / "stderr"), _WRITE)
        ):  # fmt: skip
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


_SECONDS_TO_END = 5.0  # for processes that are about to
_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
