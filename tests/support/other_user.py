"""OtherUser: a process of another user, who attacks all that a job's processes have open (tests.support.attack).

That user could not find it all; so this process, which is root's, tells it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from tests.support import attack
from tests.support.strangers import descendants

NOBODY = 65534
_ROUND_S = 0.01  # between two rounds
_MOST_HEARD = 20
_ANSWER_BYTES = 68  # of what proves the key


def python_of_another() -> tuple[str | None, str]:
    """An interpreter that another user can run, and why there is none."""
    if os.geteuid() != 0:
        return None, "only root can start a process of another user"
    for found in dict.fromkeys((shutil.which("python3", path="/usr/bin:/usr/local/bin"), sys.executable)):
        with contextlib.suppress(OSError):
            if found and _as_another([found, "-I", "-S", "-c", "import ctypes, socket"]).wait() == 0:
                return found, ""
    return None, "there is no Python that another user can run"


def _as_another(command: list[str], **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", text=True, **settings)


class OtherUser:
    """Attacks the processes of a job, and those that they start, from when the block is entered on.

    tried: attack -> how often. gained: what came of it; nothing, if all is well.

    Args:
        python: an interpreter that the other user can run.
        processes: gives the job's processes; the other user's own is none of them.
    """

    def __init__(self, python: str, processes: Callable[[], Collection[int]]) -> None:
        self.tried: dict[str, int] = {}
        self.gained: list[str] = []
        self._python = python
        self._processes = processes
        self._heard: list[bytes] = []
        self._ended = threading.Event()
        self._failure: BaseException | None = None

    def __enter__(self) -> OtherUser:
        source = Path(attack.__file__).read_text()
        command = [self._python, "-I", "-S", "-c", source]
        self._process = _as_another(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._threads = [threading.Thread(target=work) for work in (self._attack, self._listen)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0
        assert self._failure is None, self._failure

    def _attack(self) -> None:
        try:
            while not self._ended.wait(_ROUND_S):
                theirs = set(self._processes()) - {self._process.pid}
                there = {**open_now(theirs), "heard": [said.hex() for said in self._heard]}
                self._process.stdin.write(json.dumps(there) + "\n")
                self._process.stdin.flush()
                told = json.loads(self._process.stdout.readline())
                self.tried, self.gained = told["tried"], told["gained"]
        except BaseException as error:
            self._failure = error

    def _listen(self) -> None:
        """Hear on the loopback interface what proves the key, for the other user to replay."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as wire:
            wire.bind(("lo", 0))
            wire.settimeout(0.1)
            while not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    packet = wire.recv(65536)
                    length, header = struct.unpack_from("!H", packet, 2)[0], 4 * (packet[0] & 15)
                    if packet[9] == socket.IPPROTO_TCP and length > header + 12:
                        said = packet[header + 4 * (packet[header + 12] >> 4) : length]
                        is_new = attack.MARK not in said and said not in self._heard
                        if len(said) == _ANSWER_BYTES and is_new and len(self._heard) < _MOST_HEARD:
                            self._heard.append(said)


def open_now(pids: Collection[int]) -> dict[str, list[Any]]:
    """What processes have open: descriptors, files by name, and sockets by port and by name."""
    descriptors, files, sockets = [], set(), set()
    for pid in pids:
        for number in _listed(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{number}"
            with contextlib.suppress(OSError):
                to, kind = os.readlink(path), os.stat(path).st_mode
                if to.startswith("socket:"):
                    sockets.add(to[8:-1])
                if not stat.S_ISCHR(kind):
                    descriptors.append(path)
                if stat.S_ISREG(kind) and os.path.exists(to):
                    files.add(to)
    return {
        "processes": sorted(pids),
        "descriptors": descriptors,
        "files": sorted(files),
        "ports": sorted(set(_ports(sockets))),
        "names": sorted(set(_names(sockets))),
    }


def tree(parents: Collection[int]) -> set[int]:
    """Processes and all that descend from them."""
    return set(parents) | descendants(parents)


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _ports(inodes: set[str]) -> Iterator[tuple[str, int]]:
    """Addresses of a network that the sockets are bound to, whether they listen or are connected."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp", "/proc/net/udp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, inode = (line.split()[i] for i in (1, 9))
            if inode in inodes:
                host, _, port = address.rpartition(":")
                words = struct.pack(f"={len(host) // 8}I", *(int(host[i : i + 8], 16) for i in range(0, len(host), 8)))
                yield str(ipaddress.ip_address(words)), int(port, 16)


def _names(inodes: set[str]) -> Iterator[str]:
    """Names of Unix sockets, those in no folder with an @."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        inode, *name = line.split()[6:]
        if inode in inodes and name:
            yield name[0]
