"""keeper: the process that torchrun has started for another rank than the driver's.

It serves the driver, until that ends: for each engine it begins the rank's process, on a connection of its own to the
driver, and tells how that process ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch

import partitioner
from runtime.devices.memory import free_bytes
from runtime.ranks.launch import start_process
from runtime.transport.rendezvous import launcher_store
from runtime.transport.weights import digest_of

HELLO = struct.Struct("!32sII")  # token, rank, number of the process, 0 for the keeper itself
_CONNECT_S = 20.0  # for a keeper's connection to the driver
_GONE_S = 20  # after which a machine that says nothing at all counts as gone


def store_key() -> str:
    """Where the driver leaves its address and the token in torchrun's store."""
    return f"diffusion-partitioner/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


# ---- what driver and keepers say to each other, once the keeper has shown the token


@dataclass(frozen=True)
class Introduction:
    """A keeper's first words. machine: its name, and what no other machine has."""

    pid: int
    machine: tuple[str, str]
    versions: Mapping[str, str]
    cpu_free_bytes: int | None

    @classmethod
    def own(cls) -> Introduction:
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            boot = ""
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusion-partitioner": partitioner.__version__,
        }
        return cls(os.getpid(), (socket.gethostname(), boot), versions, free_bytes("cpu"))


@dataclass(frozen=True)
class Begin:
    """Begin the rank's process of this number, and connect it."""

    number: int


@dataclass(frozen=True)
class Kill:
    """End that process."""

    number: int


@dataclass(frozen=True)
class Compare:
    """Ask which files, by tensor, hold a tensor of this digest."""

    files: Mapping[str, Path]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Begun:
    """It is connected and runs."""

    number: int
    pid: int


@dataclass(frozen=True)
class Refused:
    """It cannot be begun."""

    number: int
    text: str


@dataclass(frozen=True)
class Ended:
    """How it ended, as subprocess says it."""

    number: int
    status: int


@dataclass(frozen=True)
class Same:
    """The answer to Compare."""

    tensors: frozenset[str]


@dataclass(frozen=True)
class Goodbye:
    """The driver's program ends."""


# ---- at work


def keep(rank: int, timeout_s: float) -> NoReturn:
    """Serve the driver until its program ends; then end this process, with status 0 where it ended orderly."""
    try:
        store = launcher_store(timeout_s)
        invitation = json.loads(store.get(store_key()))
        keeper = TorchrunAgent(rank, invitation)
    except (OSError, RuntimeError) as error:
        _leave(1, f"rank {rank} does not reach the driver, rank 0: {error}")
    with contextlib.suppress(ValueError):  # in another thread than the main one
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, keeper.on_signal)
    try:
        keeper.obey()
    except (EOFError, OSError):
        keeper.kill_all()
        _leave(1, f"rank {rank} ends: the driver, rank 0, has ended without a word")
    keeper.kill_all()
    _leave(0)


def _leave(status: int, text: str = "") -> NoReturn:
    """End this process; not through the interpreter's end, where what else the script imported could hold it up."""
    if text:
        print(f"torchrun: {text}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class TorchrunAgent:
    """A keeper at work."""

    def __init__(self, rank: int, invitation: Mapping[str, Any]) -> None:
        self._rank = rank
        self._address = invitation["host"], invitation["port"]
        self._token = bytes.fromhex(invitation["token"])
        self._lock = threading.Lock()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._connection = Connection(self._connect(0).detach())
        self._say(Introduction.own())

    def _connect(self, number: int) -> socket.socket:
        line = socket.create_connection(self._address, timeout=_CONNECT_S)
        line.sendall(HELLO.pack(self._token, self._rank, number))
        prepare(line)
        return line

    def _say(self, message: Any) -> None:
        with self._lock:
            self._connection.send(message)

    def obey(self) -> None:
        """Do what the driver says until it says goodbye."""
        while not isinstance(message := self._connection.recv(), Goodbye):
            if isinstance(message, Begin):
                self._begin(message.number)
            elif isinstance(message, Kill):
                self._kill([self._processes.get(message.number)])
            elif isinstance(message, Compare):
                threading.Thread(target=self._compare, args=(message,), daemon=True).start()

    def _begin(self, number: int) -> None:
        try:
            with self._connect(number) as line:
                process = start_process(line)
        except OSError as error:
            self._say(Refused(number, str(error)))
            return
        self._processes[number] = process
        self._say(Begun(number, process.pid))
        threading.Thread(target=self._await, args=(number, process), daemon=True).start()

    def _await(self, number: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        del self._processes[number]
        with contextlib.suppress(OSError):
            self._say(Ended(number, status))

    def _compare(self, asked: Compare) -> None:
        same = [name for name, digest in asked.digests.items() if digest_of(asked.files[name], name) == digest]
        with contextlib.suppress(OSError):
            self._say(Same(frozenset(same)))

    def kill_all(self) -> None:
        """End what it has begun."""
        self._kill(list(self._processes.values()))

    def _kill(self, processes: Sequence[subprocess.Popen[bytes] | None]) -> None:
        for process in processes:
            if process is not None:
                process.kill()

    def on_signal(self, number: int, _frame: Any) -> None:
        """torchrun ends its processes so."""
        self.kill_all()
        _leave(128 + number)


def prepare(line: socket.socket) -> None:
    """Small messages at once, and an end also where the other machine can no longer say that it ends."""
    line.settimeout(None)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _GONE_S // 2)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _GONE_S // 4)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_S * 1000)
