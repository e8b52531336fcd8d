"""DriverServer: the driver's side of ranks that torchrun has started; their agents connect to it.

torchrun_launcher gives an engine the server of this program, through which the ranks' processes are started.
"""

from __future__ import annotations

import atexit
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

import torch

from runtime.devices.places import Place
from runtime.errors import PlanMismatch, StartupError
from runtime.ranks import handshake
from runtime.ranks.launch import Launched, Launcher
from runtime.ranks.remote_agent import RemoteAgent, RemoteProcess
from runtime.ranks.torchrun_messages import Attach, Begin, Compare, Goodbye, Introduction
from runtime.transport.rendezvous import driver_key, launcher_store
from runtime.transport.weight_files import StoredTensor

_GREETING_S = 5.0  # for the handshake and the first message of whoever connects

_server: DriverServer | None = None  # of this program


def start_server(world: int, host: str, port: int, timeout_s: float) -> None:
    """Let the agents of this job connect, from now until the program ends; without effect where they can already.

    Args:
        world: how many ranks torchrun has started, the driver's included.
        host: of torchrun's store, where the driver's address and key are left for the agents.
        port: of torchrun's store.
        timeout_s: how long to try to reach the store.

    Raises:
        StartupError: torchrun's store cannot be reached.
    """
    global _server
    if _server is not None:
        return
    try:
        store = launcher_store(timeout_s)
        server = DriverServer(world, own_address(host, port))
        store.set(driver_key(), server.contact())
    except (OSError, RuntimeError) as error:
        raise StartupError(f"torchrun's store cannot be reached: {error}") from error
    server.store = store
    _server = server


def torchrun_launcher(ranks: int) -> Launcher | None:
    """The launcher of torchrun's ranks, or None where torchrun has not started this process.

    Raises:
        PlanMismatch: the plan needs another number of ranks than torchrun has started.
    """
    if _server is not None and _server.world != ranks:
        raise PlanMismatch(
            f"the plan needs {ranks} ranks and torchrun has started {_server.world}; "
            f"make a plan with --devices {_server.world}, or change --nnodes and --nproc-per-node"
        )
    return _server


def own_address(host: str, port: int) -> str:
    """The address of this machine that faces ``host``; IPv4 where there is one."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])


class DriverServer(Launcher):
    """Accepts the connections of agents and of the processes that they start; one per driver program.

    Args:
        world: how many ranks torchrun has started, the driver's included.
        host: the address of this machine to listen on; the port is the system's choice.
    """

    def __init__(self, world: int, host: str) -> None:
        self.world = world
        self.host = host
        self.store: Any = (
            None  # referenced for as long as agents may need it: this process may be the one that hosts it
        )
        self._key = secrets.token_bytes(32)
        self._changed = threading.Condition()
        self._agents: dict[int, RemoteAgent] = {}
        self._lines: dict[tuple[int, int], socket.socket] = {}  # rank, number -> connection of a process
        self._begun = 0
        self._owner = os.getpid()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = socket.create_server((host, 0), family=family, backlog=4 * world)
        threading.Thread(target=self._accept, name="driver server", daemon=True).start()
        atexit.register(self.close)

    def contact(self) -> str:
        """Where and with which key an agent connects, as JSON for torchrun's store."""
        port = self._listening.getsockname()[1]
        return json.dumps({"host": self.host, "port": port, "key": self._key.hex()})

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listening.accept()
            except OSError:
                return
            # each in a thread of its own: one that stays silent holds nobody up
            threading.Thread(target=self._greet, args=(line,), daemon=True).start()

    def _greet(self, line: socket.socket) -> None:
        """Take in an agent or the connection of a process; close the connection of any other peer."""
        try:
            with handshake.deadline(line, _GREETING_S):
                handshake.set_up(line)
                connection = handshake.accept_handshake(line, self._key)
                first: Introduction | Attach = connection.recv()
        except (OSError, EOFError):
            line.close()
            return
        if not 0 < first.rank < self.world:
            connection.close()
            line.close()
            return
        if isinstance(first, Attach):
            connection.close()  # the socket itself is handed on
            with self._changed:
                self._lines[first.rank, first.number] = line
                self._changed.notify_all()
            return
        line.close()
        self._serve(connection, first)

    def _serve(self, connection: Connection, introduction: Introduction) -> None:
        agent = RemoteAgent(connection, introduction)
        with self._changed:
            self._agents[introduction.rank] = agent
            self._changed.notify_all()
        agent.listen()

    def _agent(self, rank: int, timeout_s: float) -> RemoteAgent:
        """The agent of a rank; StartupError where it does not come, or cannot work with this driver."""
        with self._changed:
            self._changed.wait_for(lambda: rank in self._agents, timeout=timeout_s)
            agent = self._agents.get(rank)
        if agent is None:
            raise StartupError(
                f"rank {rank}, which torchrun should have started, has not reached the driver at {self.host} within "
                f"{timeout_s:g} s; see what torchrun says of it, and that machines reach each other at that address"
            )
        ours = Introduction.own(0).versions
        for name, version in agent.introduction.versions.items():
            if version != ours[name]:
                raise StartupError(
                    f"rank {rank} on {agent.introduction.machine[0]} has {name} {version} and the driver has "
                    f"{ours[name]}; install the same on every machine"
                )
        return agent

    def begin(self, rank: int, timeout_s: float, inherited: Sequence[int] = ()) -> Launched:
        until = time.monotonic() + timeout_s
        agent = self._agent(rank, timeout_s)
        with self._changed:
            self._begun += 1
            number = self._begun
        agent.tell(Begin(number))
        with agent.changed:
            agent.changed.wait_for(
                lambda: number in agent.pids or number in agent.refusals or agent.lost,
                timeout=max(0.0, until - time.monotonic()),
            )
        if number in agent.refusals:
            raise OSError(agent.refusals[number])
        if number not in agent.pids:
            state = "has ended" if agent.lost else f"does not answer within {timeout_s:g} s"
            raise OSError(f"the process that torchrun had started for it ({agent}) {state}")
        with self._changed:
            self._changed.wait_for(lambda: (rank, number) in self._lines, timeout=max(0.0, until - time.monotonic()))
            line = self._lines.pop((rank, number), None)
        if line is None:
            raise OSError(f"it has not reached the driver at {self.host} within {timeout_s:g} s")
        return Launched(RemoteProcess(agent, number, line), line, line.getpeername()[0])

    def places(self, devices: Sequence[str], timeout_s: float) -> list[Place]:
        here = Introduction.own(0)
        introductions = [here] + [self._agent(rank, timeout_s).introduction for rank in range(1, self.world)]
        found = []
        for device, given in zip(devices, introductions, strict=True):
            machine = given.machine[0] if given.machine != here.machine else ""
            named = torch.device(device)
            if named.type == "cuda":  # each rank's own GPU, where no other is named
                named = torch.device("cuda", given.local_rank if named.index is None else named.index)
                if named.index >= given.gpus:
                    raise PlanMismatch(
                        f"rank {given.rank} is to be on {named} of {given.machine[0]}, where its process sees "
                        f"{given.gpus} GPUs; start as many ranks there with --nproc-per-node, or name other devices"
                    )
            free = given.cpu_free_bytes if named.type == "cpu" else None
            found.append(Place(machine, "cpu" if named.type == "cpu" else str(named), free))
        return found

    def readable(self, rank: int, stored: Mapping[str, StoredTensor], timeout_s: float) -> dict[str, Path]:
        agent = self._agent(rank, timeout_s)
        files = {name: each.file for name, each in stored.items()}
        agent.same = None
        agent.tell(Compare(files, {name: each.digest for name, each in stored.items() if each.digest is not None}))
        with agent.changed:
            agent.changed.wait_for(lambda: agent.same is not None or agent.lost, timeout=timeout_s)
            same = agent.same
        return {name: file for name, file in files.items() if same is not None and name in same}

    def close(self) -> None:
        """Accept nobody else, and tell the agents that the program ends; without effect in a forked child."""
        if os.getpid() == self._owner:
            handshake.shut_down(self._listening)  # or the thread that accepts would go on
            self._listening.close()
            for agent in self._agents.values():
                agent.tell(Goodbye())
