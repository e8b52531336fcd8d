"""The driver's side of ranks that torchrun has started: it waits for their agents and starts ranks through them."""

from __future__ import annotations

import atexit
import contextlib
import hmac
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from runtime.devices.memory import Place
from runtime.errors import PlanMismatch, StartupError
from runtime.ranks.launch import Launched, Launcher, status_in_words
from runtime.ranks.torchrun_agent import (
    HELLO,
    Begin,
    Begun,
    Compare,
    Ended,
    Goodbye,
    Introduction,
    Kill,
    Refused,
    Same,
    prepare,
)
from runtime.transport.weights import digest_of

_HELLO_S = 5.0  # for a hello, once connected


def torchrun_launcher(ranks: int) -> Launcher | None:
    """The launcher of torchrun's ranks, or None where torchrun has not started this process."""
    if driver_server is None:
        return None
    if driver_server.world != ranks:
        raise PlanMismatch(
            f"the plan needs {ranks} ranks and torchrun has started {driver_server.world}; "
            f"make a plan with --devices {driver_server.world}, or change --nnodes and --nproc-per-node"
        )
    return driver_server


def own_address(host: str, port: int) -> str:
    """The address of this machine on the way to ``host``; IPv4 where there is one."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])


# ---- driver


class RemoteProcess:
    """A process that a keeper has begun."""

    def __init__(self, keeper: _AgentSeat, number: int, line: socket.socket) -> None:
        self._keeper = keeper
        self._number = number
        self._line = line.dup()
        keeper.processes[number] = self

    def __str__(self) -> str:
        return f"{self._keeper.pids[self._number]} on {self._keeper.introduction.machine[0]}"

    def ending(self, timeout_s: float = 0.0) -> str | None:
        keeper, number = self._keeper, self._number
        with keeper.changed:
            keeper.changed.wait_for(lambda: number in keeper.statuses or keeper.lost, timeout=timeout_s)
            status = keeper.statuses.get(number)
        if status is not None:
            return status_in_words(status)
        return f"ended with the process that torchrun had started for it ({keeper})" if keeper.lost else None

    def kill(self) -> None:
        if self.ending() is None:
            self._keeper.tell(Kill(self._number))
        self.cut()

    def cut(self) -> None:
        """End its connection, on which it ends itself."""
        if self._keeper.processes.pop(self._number, None) is not None:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)
            self._line.close()


class _AgentSeat:
    """What the driver knows of a keeper. statuses: of processes that have ended, by number."""

    def __init__(self, rank: int, connection: Connection, introduction: Introduction) -> None:
        self.rank = rank
        self.introduction = introduction
        self.changed = threading.Condition()
        self.pids: dict[int, int] = {}
        self.refusals: dict[int, str] = {}
        self.statuses: dict[int, int] = {}
        self.same: frozenset[str] | None = None
        self.lost = False
        self.processes: dict[int, RemoteProcess] = {}  # that are not cut off
        self._connection = connection
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"{self.introduction.pid} on {self.introduction.machine[0]}"

    def tell(self, message: Any) -> None:
        with contextlib.suppress(OSError), self._lock:
            self._connection.send(message)

    def listen(self) -> None:
        """Hear it until it is gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._hear(self._connection.recv())
        with self.changed:
            self.lost = True
            self.changed.notify_all()
        for process in list(self.processes.values()):
            process.cut()

    def _hear(self, message: Any) -> None:
        with self.changed:
            if isinstance(message, Begun):
                self.pids[message.number] = message.pid
            elif isinstance(message, Refused):
                self.refusals[message.number] = message.text
            elif isinstance(message, Ended):
                self.statuses[message.number] = message.status
            elif isinstance(message, Same):
                self.same = message.tensors
            self.changed.notify_all()


class DriverServer(Launcher):
    """Where keepers and the processes that they begin come in; there is one in a driver's program."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.store: Any = None  # kept, since it may be a server
        self._token = secrets.token_bytes(32)
        self._changed = threading.Condition()
        self._keepers: dict[int, _AgentSeat] = {}
        self._lines: dict[tuple[int, int], socket.socket] = {}
        self._begun = 0
        self._owner = os.getpid()

    def open(self, host: str) -> None:
        self.host = host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = socket.create_server((host, 0), family=family, backlog=4 * self.world)
        threading.Thread(target=self._accept, name="door", daemon=True).start()
        atexit.register(self._close)

    def invitation(self) -> str:
        port = self._listening.getsockname()[1]
        return json.dumps({"host": self.host, "port": port, "token": self._token.hex()})

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(line,), daemon=True).start()

    def _greet(self, line: socket.socket) -> None:
        """Let it in, or shut the door on it: nothing that a stranger says is used."""
        try:
            line.settimeout(_HELLO_S)
            token, rank, number = HELLO.unpack(_read_exactly(line, HELLO.size))
            known = hmac.compare_digest(token, self._token) and 0 < rank < self.world
        except (OSError, EOFError):
            known = False
        if not known:
            line.close()
            return
        prepare(line)
        if number:
            with self._changed:
                self._lines[rank, number] = line
                self._changed.notify_all()
            return
        connection = Connection(line.detach())
        try:
            keeper = _AgentSeat(rank, connection, connection.recv())
        except (EOFError, OSError):
            return
        with self._changed:
            self._keepers[rank] = keeper
            self._changed.notify_all()
        keeper.listen()

    def _keeper(self, rank: int, timeout_s: float) -> _AgentSeat:
        """The keeper of a rank; StartupError where it does not come, or cannot work with this driver."""
        with self._changed:
            self._changed.wait_for(lambda: rank in self._keepers, timeout=timeout_s)
            keeper = self._keepers.get(rank)
        if keeper is None:
            raise StartupError(
                f"rank {rank}, which torchrun should have started, has not reached the driver at {self.host} within "
                f"{timeout_s:g} s; see what torchrun says of it, and that machines reach each other at that address"
            )
        ours = Introduction.own().versions
        for name, version in keeper.introduction.versions.items():
            if version != ours[name]:
                raise StartupError(
                    f"rank {rank} on {keeper.introduction.machine[0]} has {name} {version} and the driver has "
                    f"{ours[name]}; install the same on every machine"
                )
        return keeper

    def begin(self, rank: int, timeout_s: float) -> Launched:
        until = time.monotonic() + timeout_s
        keeper = self._keeper(rank, timeout_s)
        with self._changed:
            self._begun += 1
            number = self._begun
        keeper.tell(Begin(number))
        with keeper.changed:
            keeper.changed.wait_for(
                lambda: number in keeper.pids or number in keeper.refusals or keeper.lost,
                timeout=max(0.0, until - time.monotonic()),
            )
        if number in keeper.refusals:
            raise OSError(keeper.refusals[number])
        if number not in keeper.pids:
            state = "has ended" if keeper.lost else f"does not answer within {timeout_s:g} s"
            raise OSError(f"the process that torchrun had started for it ({keeper}) {state}")
        with self._changed:
            self._changed.wait_for(lambda: (rank, number) in self._lines, timeout=max(0.0, until - time.monotonic()))
            line = self._lines.pop((rank, number), None)
        if line is None:
            raise OSError(f"it has not reached the driver at {self.host} within {timeout_s:g} s")
        return Launched(RemoteProcess(keeper, number, line), line, line.getpeername()[0])

    def places(self, devices: Sequence[str], timeout_s: float) -> list[Place]:
        here = Introduction.own()
        introductions = [here] + [self._keeper(rank, timeout_s).introduction for rank in range(1, self.world)]
        found = []
        for device, said in zip(devices, introductions, strict=True):
            machine = said.machine[0] if said.machine != here.machine else ""
            found.append(Place(machine, device, said.cpu_free_bytes if device == "cpu" else None))
        return found

    def readable(self, rank: int, files: Mapping[str, Path], timeout_s: float) -> dict[str, Path]:
        keeper = self._keeper(rank, timeout_s)
        digests = {name: digest for name, file in files.items() if (digest := digest_of(file, name)) is not None}
        keeper.same = None
        keeper.tell(Compare(dict(files), digests))
        with keeper.changed:
            keeper.changed.wait_for(lambda: keeper.same is not None or keeper.lost, timeout=timeout_s)
            same = keeper.same
        return {name: file for name, file in files.items() if same is not None and name in same}

    def _close(self) -> None:
        if os.getpid() == self._owner:
            self._listening.close()
            for keeper in self._keepers.values():
                keeper.tell(Goodbye())


driver_server: DriverServer | None = None


def _read_exactly(line: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        more = line.recv(count - len(read))
        if not more:
            raise EOFError
        read += more
    return read
