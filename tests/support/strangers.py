"""Strangers: another user of the machine, who connects to whatever a job's processes listen on."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from runtime.transport.handshake import KEY_BYTES, connect

HELD = 40  # connections that stay open, silent


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


class Strangers:
    """Attacks by turns, from when on the block is entered, every port that the job's processes open.

    attacked: port -> how many connections. let_in: what somebody was let in by; nothing, if all is well.

    Args:
        parents: the processes whose children the job's are; their own ports are torchrun's, and left alone.
        trap: a file that is made where anything is unpickled.
    """

    def __init__(self, parents: Collection[int], trap: Path) -> None:
        self.attacked: dict[int, int] = {}
        self.let_in: list[str] = []
        self._parents = parents
        self._trap = pickle.dumps(Trap(trap))
        self._heard = b""  # what an accepting side has said to somebody else
        self._held: list[socket.socket] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._attack_all)

    def __enter__(self) -> Strangers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for line in self._held:
            line.close()

    def _attack_all(self) -> None:
        while not self._ended.wait(0.001):
            for port in ports_of_children(self._parents):
                with contextlib.suppress(OSError):
                    self._attack(("127.0.0.1", port), self.attacked.get(port, 0))
                self.attacked[port] = self.attacked.get(port, 0) + 1

    def _attack(self, address: tuple[str, int], turn: int) -> None:
        if turn % 6 == 0:  # guess
            connect(address, bytes(KEY_BYTES), 1, timeout_s=5).close()
            self.let_in.append("a guessed key")
        line = socket.create_connection(address, timeout=5)
        if turn % 6 == 1:  # hold
            self._held.append(line)
            if len(self._held) > HELD:
                self._held.pop(0).close()
            return
        with line:
            if turn % 6 == 2:  # garble, by 8 bytes as gloo would take for a number of the connection
                line.sendall((turn % 3).to_bytes(8, "little"))
            elif turn % 6 == 3:  # as what reads a pickle would read it
                line.sendall(len(self._trap).to_bytes(4, "big") + self._trap)
            elif turn % 6 == 4:  # replay: what was heard is sent back, to another connection
                said = line.recv(1000)
                line.sendall((self._heard + said)[-68:])
                self._heard = said
                if len(answer := line.recv(1000)) == KEY_BYTES and any(answer):
                    self.let_in.append("a replay")
            # else: connect and close


def ports_of_children(parents: Collection[int]) -> Iterator[int]:
    """The TCP ports on which descendants of processes listen, but not they themselves."""
    inodes = set()
    for pid in descendants(parents):
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state, inode = (line.split()[i] for i in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in inodes:
                yield int(address.rpartition(":")[2], 16)


def descendants(parents: Collection[int]) -> set[int]:
    """The processes that descend from these."""
    parent_of = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent_of[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    while new := {pid for pid, parent in parent_of.items() if parent in found | set(parents)} - found:
        found |= new
    return found
