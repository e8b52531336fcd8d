"""The process that others are forked from: ``python tests/support/warm_server.py DESCRIPTOR``, of a line to its user.

It computes nothing, and so has no threads. Ranks are forked as they are; a program first forks a server of its own,
for ranks have to be children of their drivers. Each end of a line notices that the other has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PLACES = sys.path[1:]  # of modules, without this file's
HIGH = 512  # descriptors are kept from here on while those below are put in place
PR_SET_NAME = 15
NAMES = {"server": b"warm-server", "rank": b"warm-rank", "program": b"warm-program"}
IMPORTED = (
    "torch._dynamo",
    "transformers",
    "diffusers.pipelines.stable_diffusion",
    "runtime.ranks.rank_main",
    "runtime.ranks.rank_process",
    "runtime.cli",
    "runtime.pipeline",
    "partitioner.cli",
    "tests.support.pipelines",
    "tests.support.trouble",
    "tests.support.warm",
)


def main() -> None:
    """Serve, and then be what was asked for: a rank or a program."""
    line = socket.socket(fileno=int(sys.argv[1]))
    sys.path[:] = [str(Path(__file__).parents[2]), *PLACES]
    with _unheard():
        for module in IMPORTED:
            importlib.import_module(module)
    gc.freeze()  # so that collections in forked processes copy no memory that they share
    while True:
        request = _serve(line)
        _become(request)
        if request["is_rank"]:
            sys.argv[1:] = request["arguments"][3:]
            sys.modules["runtime.ranks.rank_process"].main()
        ours, line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() != 0:
            line.close()
            sys.modules["tests.support.warm"].fork_processes_by(ours)
            _run(request["arguments"])
            return
        ours.detach()
        line = _alone_with(line)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """What libraries say on stderr is not said in the block: it would be in what a test captures."""
    heard = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(heard, 2)
        os.close(heard)


def _serve(line: socket.socket) -> dict[str, Any]:
    """Fork processes until the other end is gone; returns, in each of them, what was asked for."""
    _name("server")
    line.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(line, 1 << 17, 64)
        if not message:
            os._exit(0)
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                line.detach()  # closed below, with all others
                return {**json.loads(message), "given": descriptors}
            line.send(str(pid).encode())
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(between, 0)


def _become(request: dict[str, Any]) -> None:
    """Take over, in a forked process, what a started one would have been given."""
    _name("rank" if request["is_rank"] else "program")
    if request["new_session"]:
        os.setsid()
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, HIGH) for descriptor in request["given"]]
    os.closerange(3, HIGH)
    for descriptor, wanted in zip(kept, request["descriptors"], strict=True):
        os.dup2(descriptor, wanted)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    given = list(filter(None, request["environment"].get("PYTHONPATH", "").split(os.pathsep)))
    sys.path[:] = [*given, *(place for place in PLACES if place not in given)]
    while os.getppid() != request["parent"]:
        time.sleep(0.0005)


def _alone_with(line: socket.socket) -> socket.socket:
    """Close what a program's server has no use for, and would keep others waiting by; returns its line."""
    os.dup2(line.detach(), 3)
    os.closerange(4, HIGH)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)
    return socket.socket(fileno=3)


def _run(arguments: Sequence[str]) -> None:
    """Do what Python does with these arguments."""
    kind, *rest = arguments = [each for each in arguments[:1] if each != "-u"] + list(arguments[1:])
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv[:] = rest
        sys.modules.pop(rest[0], None)  # runpy warns of a module that has been imported
        runpy._run_module_as_main(rest[0])
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv[:] = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(module))
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        sys.argv[:] = arguments
        module.__file__ = kind
        exec(compile(Path(kind).read_bytes(), kind, "exec"), vars(module))


def _name(kind: str) -> None:
    """Name this process, by which it is told from others that have the same command line."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, NAMES[kind])


if __name__ == "__main__":
    main()
