"""Ranks that are forked from a process that has imported torch: the import takes seconds, and tests start hundreds.

``python -m tests.support.warm_ranks DESCRIPTOR`` is the process that they are forked from. It computes nothing, and so
has no threads. A forked rank is what a started one is from ``rank_process.main()`` on: a child of the process that
asked for it, in a session of its own, with the descriptors, variables, folder and places of modules that it was given.
Programs that tests run start their ranks as users' programs do, and so do tests marked ``processes(forked=False)``.
"""

from __future__ import annotations

import ctypes
import fcntl
import inspect
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-P", "-m", "runtime.ranks.rank_process"]
HIGH = 512  # descriptors are kept from here on while those below are put in place
PR_SET_CHILD_SUBREAPER = 36
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_execute_child = subprocess.Popen._execute_child
_server: subprocess.Popen[bytes] | None = None
_line: socket.socket | None = None


def server_pid() -> int | None:
    """The process that this one's ranks are forked from; None where there is none."""
    return None if _server is None else _server.pid


def fork_ranks(forked: bool) -> None:
    """Say whether ``subprocess.Popen`` forks ranks from now on, or starts them."""
    if forked and _server is None:
        _start_server()
    subprocess.Popen._execute_child = _execute_child_or_fork if forked else _execute_child


def end_server() -> None:
    """Start ranks from now on; nothing stays."""
    global _server, _line
    fork_ranks(False)
    if _server is not None:
        _server.kill()
        _server.wait()
        _line.close()
        _server = _line = None


def _start_server() -> None:
    global _server, _line
    _line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        _server = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        )
    _line.recv(16)  # it has imported what ranks need


def _execute_child_or_fork(self: subprocess.Popen[bytes], *given: Any) -> None:
    options = inspect.signature(_execute_child).bind(self, *given).arguments
    command = options["args"]
    if command[: len(COMMAND)] != COMMAND:
        _execute_child(self, *given)
        return
    self.pid = _forked(command[len(COMMAND) :], options["pass_fds"], options["env"])
    self._child_created = True
    self._close_pipe_fds(*(options[name] for name in PIPES))


def _forked(arguments: Sequence[str], descriptors: Sequence[int], environment: dict[str, str]) -> int:
    """Have a rank forked, and wait until it is a child of this process; returns its id."""
    request = {
        "arguments": arguments,
        "descriptors": list(descriptors),
        "environment": environment,
        "folder": os.getcwd(),
    }
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # the rank's parent ends, and so this process becomes it
    try:
        socket.send_fds(_line, [json.dumps(request).encode()], [2, *descriptors])
        pid = int(_line.recv(16))
        while int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) != os.getpid():
            time.sleep(0.0005)
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
    return pid


def _serve(line: socket.socket) -> None:
    """Fork ranks until the other end is gone."""
    from runtime.ranks import rank_main as rank_main  # before there is one
    from runtime.ranks import rank_process

    line.send(b"ready")
    while True:
        request, descriptors, _, _ = socket.recv_fds(line, 1 << 17, 64)
        if not request:
            return
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                _become(json.loads(request), descriptors)
                rank_process.main()
            line.send(str(pid).encode())
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(between, 0)


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Take over, in a forked process, what a started one would have been given."""
    os.setsid()
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, HIGH) for descriptor in descriptors]
    os.closerange(3, HIGH)
    for descriptor, wanted in zip(kept, [2, *request["descriptors"]], strict=True):
        os.dup2(descriptor, wanted)
        os.close(descriptor)
    os.dup2(2, 1)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    given = request["environment"]["PYTHONPATH"].split(os.pathsep)
    sys.path[:] = [*given, *(place for place in sys.path if place not in given)]
    sys.argv[1:] = request["arguments"]
    while os.getppid() != int(request["arguments"][1]):
        time.sleep(0.0005)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
