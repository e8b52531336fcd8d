"""Processes forked from one that has imported torch and diffusers: the imports take seconds, and tests start hundreds.

Forked are the ranks of engines and the processes of ``multiprocessing``'s kind "spawn", while ``fork_processes`` says
so, and always the programs that tests run by ``run`` and ``start``, with all that these start in the same ways. To the
one who starts it a forked process is what a started one would be: its child, with the descriptors, variables, folder
and places of modules that it was given. What no fork shows is how Python itself starts and what is imported then, and
what variables set for libraries that read them once; tests of that start their programs by ``subprocess``.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import json
import multiprocessing.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RANK = [sys.executable, "-P", "-m", "runtime.ranks.rank_process"]
PROGRAMS = (
    [sys.executable, "-m", "tools.bench.rank_memory"],  # which a tool runs
    [sys.executable, "-u"],  # as torchrun starts what it is given
)
SERVER = Path(__file__).with_name("warm_server.py")
PR_SET_CHILD_SUBREAPER = 36
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_execute_child = subprocess.Popen._execute_child
_spawnv_passfds = multiprocessing.util.spawnv_passfds
_lock = threading.Lock()
_server: subprocess.Popen[bytes] | None = None
_line: socket.socket | None = None
_program = threading.local()  # whether this thread is about to start one


def run(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` of Python with these arguments (-c, -m or a script), as text, by a fork."""
    with _a_program():
        return subprocess.run([sys.executable, *arguments], text=True, **options)


def start(arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """``subprocess.Popen`` of Python with these arguments (-c, -m or a script), as text, by a fork."""
    with _a_program():
        return subprocess.Popen([sys.executable, *arguments], text=True, **options)


@contextlib.contextmanager
def _a_program() -> Iterator[None]:
    make_ready()
    before = subprocess.Popen._execute_child
    subprocess.Popen._execute_child = _execute_child_or_fork
    _program.starts = True
    try:
        yield
    finally:
        _program.starts = False
        subprocess.Popen._execute_child = before


def make_ready() -> None:
    """Start what processes are forked from, where it is not there yet: it stays, and so does the line to it."""
    if _line is None:
        _start_server()


def fork_processes(forked: bool) -> None:
    """Say whether ranks and processes of kind "spawn" are forked from now on, or started."""
    if forked:
        make_ready()
    subprocess.Popen._execute_child = _execute_child_or_fork if forked else _execute_child
    multiprocessing.util.spawnv_passfds = _spawn_or_fork if forked else _spawnv_passfds


def fork_processes_by(line: socket.socket) -> None:
    """Fork from now on, by the process at the other end."""
    global _line
    _line = line
    _line.recv(16)  # it is ready
    fork_processes(True)


def end_server() -> None:
    """Start processes from now on; nothing stays."""
    global _server, _line
    fork_processes(False)
    if _server is not None and _line is not None:
        _server.kill()
        _server.wait()
        _line.close()
        _server = _line = None


def _start_server() -> None:
    global _server, _line
    _line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        _server = subprocess.Popen(
            [sys.executable, str(SERVER), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    _line.recv(16)  # it has imported what there is to import


def _execute_child_or_fork(self: subprocess.Popen[bytes], *given: Any) -> None:
    options = inspect.signature(_execute_child).bind(self, *given).arguments
    command = [options["args"]] if isinstance(options["args"], str) else list(options["args"])
    is_rank = command[: len(RANK)] == RANK
    if not (is_rank or getattr(_program, "starts", False) or any(command[: len(each)] == each for each in PROGRAMS)):
        _execute_child(self, *given)
        return
    _program.starts = False  # what it waits for may start others
    streams = {number: options[name] for number, name in enumerate(("p2cread", "c2pwrite", "errwrite"))}
    descriptors = {number: number if given == -1 else given for number, given in streams.items()}
    descriptors |= {number: number for number in options["pass_fds"]}
    self.pid = _forked(
        command[1:], descriptors, options["env"], options["cwd"], options["start_new_session"], is_rank=is_rank
    )
    self._child_created = True
    self._close_pipe_fds(*(options[name] for name in PIPES))


def _spawn_or_fork(path: Any, command: Sequence[Any], descriptors: Sequence[int]) -> int:
    if "--multiprocessing-fork" not in command:
        return _spawnv_passfds(path, command, descriptors)
    return _forked(command[command.index("-c") :], {number: number for number in (0, 1, 2, *descriptors)})


def _forked(
    arguments: Sequence[str],
    descriptors: Mapping[int, int],
    environment: Mapping[str, str] | None = None,
    folder: Any = None,
    new_session: bool = False,
    is_rank: bool = False,
) -> int:
    """Have a process forked, and wait until it is a child of this one; returns its id.

    Args:
        arguments: Python's.
        descriptors: what it has under which number: those of this process.
        environment: its variables; None: this process's.
        folder: where it begins; None: this process's.
        new_session: it has a session of its own.
        is_rank: its arguments are a rank's.
    """
    request = {
        "arguments": arguments,
        "descriptors": list(descriptors),
        "environment": dict(os.environ if environment is None else environment),
        "folder": os.fspath(folder or os.getcwd()),
        "new_session": new_session,
        "is_rank": is_rank,
        "parent": os.getpid(),
    }
    prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    assert _line is not None
    with _lock:
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # its parent ends, and so this process becomes that
        try:
            socket.send_fds(_line, [json.dumps(request).encode()], list(descriptors.values()))
            pid = int(_line.recv(16))
            while int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) != os.getpid():
                time.sleep(0.0005)
        finally:
            prctl(PR_SET_CHILD_SUBREAPER, 0)
    return pid
