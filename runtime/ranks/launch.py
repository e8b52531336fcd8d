"""launch: starts the processes of ranks, here on this machine (LocalLauncher); see torchrun_driver for others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from runtime.devices.places import Place, local_places
from runtime.transport.weight_files import StoredTensor

LOOPBACK = "127.0.0.1"
STATUS_TAKEN = (
    "ended with a status that somebody else has taken (the program ignores SIGCHLD, or waits for any child, as "
    "os.waitpid(-1) does)"
)
_LOOK_S = 0.005  # between two looks at whether a process has ended


class RankProcess(Protocol):
    """A rank's process, as the driver sees it; ``str`` names it in messages."""

    def ending(self, timeout_s: float = 0.0) -> str | None:
        """How it ended, in words; None if it has not ended ``timeout_s`` from now."""

    def kill(self) -> None:
        """End it, at once and whatever it does."""


@dataclass(frozen=True)
class Launched:
    """A process that was started.

    line: the driver's end of its connection. host: the address whose network interface the process is to use.
    """

    process: RankProcess
    line: socket.socket
    host: str


class Launcher(ABC):
    """Starts the processes of ranks.

    host: the address whose network interface the driver is to use. same_machine: whether all run on this machine and
    inherit descriptors.
    """

    host: str
    same_machine = False

    @abstractmethod
    def begin(self, rank: int, timeout_s: float, inherited: Sequence[int] = ()) -> Launched:
        """Start a rank's process.

        Args:
            rank: whose.
            timeout_s: for its machine to start it.
            inherited: descriptors that the process has, too, under the same numbers.

        Raises:
            OSError: it cannot be started.
            StartupError: what should start it is not there within ``timeout_s``.
        """

    @abstractmethod
    def places(self, devices: Sequence[str], timeout_s: float) -> list[Place]:
        """rank -> its place. devices: by rank; "cuda" is the rank's own GPU.

        Raises:
            PlanMismatch: a rank's machine has no such device.
        """

    @abstractmethod
    def readable(self, rank: int, stored: Mapping[str, StoredTensor], timeout_s: float) -> dict[str, Path]:
        """Files that hold, on the rank's machine, tensors that files hold on this one; for those that one there does.

        Args:
            rank: which.
            stored: name of a tensor -> where it is on this machine.
            timeout_s: for the rank's machine to compare them; none counts as the same after that.
        """


class LocalLauncher(Launcher):
    """Starts them on this machine, where they connect over the loopback interface. module: what a process runs."""

    host = LOOPBACK
    same_machine = True

    def __init__(self, module: str = "runtime.ranks.rank_process") -> None:
        self._module = module

    def begin(self, rank: int, timeout_s: float, inherited: Sequence[int] = ()) -> Launched:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = start_process(theirs, self._module, inherited)
            except BaseException:
                ours.close()
                raise
        return Launched(LocalProcess(process), ours, LOOPBACK)

    def places(self, devices: Sequence[str], timeout_s: float) -> list[Place]:
        return local_places(devices)

    def readable(self, rank: int, stored: Mapping[str, StoredTensor], timeout_s: float) -> dict[str, Path]:
        return {name: each.opened.path for name, each in stored.items()}


class LocalProcess:
    """A process that this one has started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._ended = False
        self._status: int | None = None

    def __str__(self) -> str:
        return str(self._process.pid)

    def ending(self, timeout_s: float = 0.0) -> str | None:
        until = time.monotonic() + timeout_s
        while not self._look():
            if time.monotonic() >= until:
                return None
            time.sleep(_LOOK_S)
        return status_in_words(self._status)

    def status(self) -> int | None:
        """Its exit status, when it has ended; minus a signal that killed it. None: somebody else has taken it."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._look()
        return self._status

    def _look(self) -> bool:
        """Whether it has ended; how is asked before subprocess takes the status, and calls one that is gone a 0."""
        with self._lock:
            if not self._ended:
                with suppress(ChildProcessError):
                    found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if found is None:
                        return False
                    self._status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
                self._ended = True
                self._process.poll()
            return True

    def kill(self) -> None:
        with self._lock:
            if not self._ended:
                with suppress(ProcessLookupError):
                    os.kill(self._process.pid, signal.SIGKILL)  # subprocess's own would take the status


def start_process(
    line: socket.socket | Connection, module: str = "runtime.ranks.rank_process", inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a rank's process, which talks to its driver over ``line`` and ends when that, or this process, does.

    Args:
        line: the process's end.
        module: what it runs.
        inherited: descriptors that it has, too, under the same numbers.
    """
    # the rank must find every module where this process does; -P keeps the current folder out
    places = [*filter(None, sys.path), str(Path(__file__).resolve().parents[2])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(line.fileno()), str(os.getpid())],
        pass_fds=[line.fileno(), *inherited],
        stdin=subprocess.DEVNULL,
        stdout=2,  # stdout is for results
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(places)),
        cwd=None if _is_in_a_folder() else "/",  # torch cannot be loaded in one that was deleted
        start_new_session=True,  # a terminal's Ctrl-C and Ctrl-Z are for the driver
    )


def _is_in_a_folder() -> bool:
    """Whether this process's current folder is there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def status_in_words(status: int | None) -> str:
    """How a process ended, by its exit status; None where that is not known."""
    if status is None:
        return STATUS_TAKEN
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    hint = "; the system does so when memory runs out" if -status == signal.SIGKILL else ""
    return f"was killed by signal {-status} ({name}{hint})"
