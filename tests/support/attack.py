"""What another user of the machine tries on a running job. A program of its own, with nothing but Python's library.

It reads lines of JSON: what a job has open now, found by who may look (tests.support.other_user). For each it makes a
round of attacks, and answers with a line: how often each was tried so far, and what was gained by it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator

FLOOD = 400  # connections, one after the other: more than the attacked processes may have descriptors
HELD = 400  # connections that stay open
GREETING_BYTES, PROOF_BYTES = 66, 32
MARK = b"a guess, by who knows no secret "  # in place of a challenge
PATIENCE_S = 1.0
HASTE_S = 0.02
PTRACE_SEIZE, PIDFD_OPEN, PIDFD_GETFD = 0x4206, 434, 438

libc = ctypes.CDLL(None, use_errno=True)
tried: Counter[str] = Counter()
gained: list[str] = []
held: list[socket.socket] = []
turns: Counter[tuple[str, int]] = Counter()  # by address
seen: set[str] = set()


def attempt(what: str, whose: str, act: Callable[[], object]) -> None:
    """Try something that must fail with an OSError."""
    tried[what] += 1
    with contextlib.suppress(OSError):
        gained.append(f"{what} {whose}: {act()}")


def looked_at(path: str) -> int:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if path.endswith("maps") and not os.read(file, 1):
        raise ProcessLookupError("it has ended, and everybody may see that it has no memory")
    return file


def on_process(pid: int) -> None:
    attempt("signal", str(pid), lambda: os.kill(pid, signal.SIGSTOP))
    attempt("look at", str(pid), lambda: os.listdir(f"/proc/{pid}/fd"))
    for name in ("mem", "maps", "environ", "pagemap", "cwd", "root", "auxv"):
        attempt("look at", f"{pid} {name}", lambda name=name: looked_at(f"/proc/{pid}/{name}"))
    attempt("trace", str(pid), lambda: called(libc.ptrace, PTRACE_SEIZE, pid, None, None))
    room = ctypes.create_string_buffer(16)
    part = (ctypes.c_void_p * 2)(ctypes.addressof(room), 16)
    attempt("look at", f"{pid} memory", lambda: called(libc.process_vm_readv, pid, part, 1, part, 1, 0))


def on_descriptor(path: str) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR):
        attempt("open", path, lambda flags=flags: os.open(path, flags | os.O_NONBLOCK))
    pid, number = path.split("/")[2::2]
    with contextlib.suppress(OSError):
        process = called(libc.syscall, PIDFD_OPEN, int(pid), 0)
        attempt("take", path, lambda: called(libc.syscall, PIDFD_GETFD, process, int(number), 0))
        os.close(process)


def called(function: Callable[..., int], *arguments: object) -> int:
    made = function(*arguments)
    if made == -1:
        raise OSError(ctypes.get_errno(), "")
    return made


def on_unix_socket(name: str, heard: list[bytes]) -> None:
    """Sockets of these kinds let in nobody; to one of packets a connection has to prove the key, as to a port."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as line:
            attempt("connect by name", name, lambda line=line: line.connect(name.replace("@", "\0", 1)))
    on_port(name, 0, heard)


def on_port(host: str, port: int, heard: list[bytes]) -> None:
    """The next attack on a port, from the first, which takes the longest and so comes in between all that is meant."""
    turn, turns[host, port] = turns[host, port], turns[host, port] + 1
    if turn == 0:
        flood(host, port)
        return
    line = connected(host, port)
    kind = turn % 6
    if kind == 1:
        hold(host, port)
    elif kind == 2:
        tried["garble"] += 1
        line.sendall(os.urandom(100_000))
        read_to_end(line)
    elif kind == 3 and heard:
        tried["replay"] += 1
        answer(line, heard[turn // 6 % len(heard)])
    elif kind == 4:
        tried["guess"] += 1
        answer(line, (1).to_bytes(4, "big") + MARK + bytes(PROOF_BYTES))
    elif kind == 5:
        tried["drip"] += 1
        line.sendall(b"\0")
        held.append(line)
        return
    line.close()


def connected(host: str, port: int, patience_s: float = PATIENCE_S) -> socket.socket:
    tried["connect"] += 1
    if port:
        return socket.create_connection((host, port), timeout=patience_s)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.settimeout(patience_s)
    line.connect(host.replace("@", "\0", 1))
    return line


def flood(host: str, port: int) -> None:
    tried["flood"] += 1
    for _ in range(FLOOD):
        with contextlib.suppress(TimeoutError):  # the queue of those who wait to be let in is full
            connected(host, port, HASTE_S).close()


def hold(host: str, port: int) -> None:
    tried["hold"] += 1
    for _ in range(HELD):
        with contextlib.suppress(TimeoutError):
            held.append(connected(host, port, HASTE_S))
    while len(held) > 2 * HELD:
        held.pop(0).close()


def answer(line: socket.socket, said: bytes) -> None:
    """Say to an accepting side what should prove something."""
    line.settimeout(PATIENCE_S)
    missing = GREETING_BYTES
    while missing:
        piece = line.recv(missing)
        if not piece:
            return  # it was closed before, to which nothing can be said
        missing -= len(piece)
    line.sendall(said)
    if any(told := read_to_end(line)):
        gained.append(f"an answer from {line.getpeername()}: {told!r}")


def read_to_end(line: socket.socket) -> bytes:
    return b"".join(pieces(line))


def pieces(line: socket.socket) -> Iterator[bytes]:
    line.settimeout(PATIENCE_S)
    with contextlib.suppress(OSError):
        while piece := line.recv(1000):
            yield piece


def main() -> None:
    for text in sys.stdin:
        there = json.loads(text)
        for pid in there["processes"]:
            if f"process {pid}" not in seen:
                seen.add(f"process {pid}")
                on_process(pid)
        for path in there["descriptors"]:
            if path not in seen:
                seen.add(path)
                on_descriptor(path)
        for path in set(there["files"]) - seen:
            seen.add(path)
            attempt("write to", path, lambda path=path: os.open(path, os.O_RDWR | os.O_NONBLOCK))
        heard = [bytes.fromhex(each) for each in there["heard"]]
        for name in there["names"]:
            with contextlib.suppress(OSError):
                on_unix_socket(name, heard)
        for host, port in there["ports"]:
            with contextlib.suppress(OSError):
                on_port(host, port, heard)
        tried["rounds"] += 1
        print(json.dumps({"tried": tried, "gained": gained}), flush=True)


if __name__ == "__main__":
    main()
