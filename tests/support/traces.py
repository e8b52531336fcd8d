"""What a program leaves in the system: processes, descriptors, threads, ports, shared memory, temporary files."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path


def rank_processes(parent: int | None = None) -> list[int]:
    """Process ids of the ranks that a driver (this process) has started, in that order."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                # the command's name is in brackets and may hold blanks
                name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
                fields = rest.split()
                ppid, started = int(fields[1]), int(fields[19])
                is_rank = name == "warm-rank" or b"runtime.ranks.rank_process" in (folder / "cmdline").read_bytes()
                if is_rank and ppid == (parent or os.getpid()):
                    found.append((started, int(folder.name)))
    return [pid for _, pid in sorted(found)]  # process ids begin anew at some time


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one whose parent has not asked how counts as ended."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


_OWN = re.compile("torch(?!inductor_)|gloo|diffusion")
_LISTENS = 0x10000  # a flag of /proc/net/unix


def listening(pids: list[int]) -> set[str]:
    """On what these processes listen: for TCP addresses in the kernel's hexadecimal, and names of Unix sockets."""
    owned = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in (Path("/proc") / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    owned.add(os.readlink(descriptor))
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state, inode = (line.split()[i] for i in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in owned:
                addresses.add(address.split(":")[0])
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        flags, _, _, inode, *name = line.split()[3:]
        if int(flags, 16) & _LISTENS and f"socket:[{inode}]" in owned:
            addresses.add(name[0])
    return addresses


@dataclass(frozen=True)
class Traces:
    """What this program holds now."""

    ranks: tuple[int, ...]
    descriptors: int
    threads: int
    ports: frozenset[str]
    shared_memory: frozenset[str]
    temporary: frozenset[str]

    @classmethod
    def now(cls) -> Traces:
        return cls(
            ranks=tuple(rank_processes()),
            descriptors=len(os.listdir("/proc/self/fd")),
            threads=len(os.listdir("/proc/self/task")),
            ports=frozenset(listening([os.getpid()])),
            shared_memory=_own("/dev/shm"),
            temporary=_own(tempfile.gettempdir()),
        )

    def beyond(self, before: Traces) -> dict[str, object]:
        """What there is more of than before."""
        more: dict[str, object] = {}
        for field in fields(self):
            now, then = getattr(self, field.name), getattr(before, field.name)
            if isinstance(now, int):
                if now > then:
                    more[field.name] = now - then
            elif set(now) - set(then):
                more[field.name] = set(now) - set(then)
        return more


def _own(folder: str) -> frozenset[str]:
    """The entries of a folder that a rank could have made: of torch or gloo, by name.

    Not torch's cache of compiled code, which is for all processes, and to stay.
    """
    if not os.path.isdir(folder):
        return frozenset()
    return frozenset(name for name in os.listdir(folder) if _OWN.match(name))


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """After the block there is nothing that was not there before; threads and the like have a moment to end."""
    before = Traces.now()
    yield
    more = Traces.now().beyond(before)
    until = time.monotonic() + 60  # on a busy machine a moment is long
    while more and time.monotonic() < until:
        time.sleep(0.02)
        more = Traces.now().beyond(before)
    assert not more, f"left behind: {more}"
