"""DriverServer: the driver's side of ranks that torchrun has started; their agents connect to it.

torchrun_launcher gives an engine the server of this program, through which the ranks' processes are started.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from runtime.devices.places import Place
from runtime.errors import OtherProcess, PlanMismatch, StartupError
from runtime.ranks.launch import Launched, Launcher
from runtime.ranks.remote_agent import RemoteAgent, RemoteProcess
from runtime.ranks.torchrun_messages import (
    FROM_AGENT,
    Begin,
    Compare,
    Goodbye,
    Introduction,
    MessageLine,
    NoMessage,
)
from runtime.ranks.torchrun_store import Contact, JobKey, launcher_store, leave_contact
from runtime.transport.door import Door
from runtime.transport.handshake import KEY_BYTES, break_where_unread, deadline
from runtime.transport.weight_files import StoredTensor

_INTRODUCTION_S = 20.0  # for the first message of an agent that has been let in

_log = logging.getLogger("runtime")

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
        leave_contact(store, server.contact)
    except (OSError, RuntimeError) as error:
        raise StartupError(f"torchrun's store cannot be reached: {error}") from error
    server.store = store
    _server = server


def torchrun_launcher(ranks: int) -> Launcher | None:
    """The launcher of torchrun's ranks, or None where torchrun has not started this process.

    Raises:
        PlanMismatch: the plan needs another number of ranks than torchrun has started.
        OtherProcess: this process was forked from the driver, whose connections to the ranks it must not use.
    """
    if _server is not None and not _server.is_owner:
        raise OtherProcess(
            f"an engine in process {os.getpid()}, which was forked from the driver that torchrun has started: only "
            'that one can have the ranks of torchrun. Start the engine there, or here with transport="threads"'
        )
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


def _names_of(machines: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A name for each machine: that of its host, with its boot id where several hosts have one name."""
    hosts = Counter(host for host, _ in machines)
    return {machine: machine[0] if hosts[machine[0]] == 1 else " ".join(machine) for machine in machines}


def _own_gpu(given: Introduction, introductions: Collection[Introduction]) -> int:
    """A rank's own GPU, as its process counts them: the only one, where it was given that one by itself."""
    alike = [each for each in introductions if (each.machine, each.visible_gpus) == (given.machine, given.visible_gpus)]
    return 0 if given.gpus == 1 and given.visible_gpus is not None and len(alike) == 1 else given.local_rank


class DriverServer(Launcher):
    """Lets in the agents, and the processes that they start; one per driver program.

    The door to agents is open until each rank's has come, that to a process while it is begun: an agent that is there
    is never replaced, and while an engine runs nothing listens.

    Args:
        world: how many ranks torchrun has started, the driver's included.
        host: the address of this machine to listen on; the ports are the system's choice.
    """

    def __init__(self, world: int, host: str) -> None:
        self.world = world
        self.host = host
        self.store: Any = (
            None  # referenced for as long as agents may need it: this process may be the one that hosts it
        )
        self._changed = threading.Condition()
        self._agents: dict[int, RemoteAgent] = {}
        self._begun = 0
        self._owner = os.getpid()
        self._key = JobKey.new()
        self._door = Door(host, self._key.proof, range(1, world), self._serve)
        self.contact = Contact.of(self._door.address, self._key)
        atexit.register(self.close)

    @property
    def is_owner(self) -> bool:
        """Whether this process is the driver, and none that was forked from it."""
        return os.getpid() == self._owner

    def _serve(self, rank: int, line: socket.socket) -> None:
        """Take the messages of the agent that has come for a rank, to its end."""
        agent_line = MessageLine(line, FROM_AGENT)
        try:
            with deadline(line, _INTRODUCTION_S):
                introduction = agent_line.receive()
            if not isinstance(introduction, Introduction) or introduction.rank != rank:
                raise NoMessage("it does not introduce itself")
        except (OSError, EOFError) as error:
            _log.warning("what torchrun has started for rank %d is given up: %s", rank, str(error) or "it ended")
            agent_line.close()
            return
        break_where_unread(line)
        agent = RemoteAgent(agent_line, introduction)
        with self._changed:
            self._agents[rank] = agent
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
        lines: list[socket.socket] = []

        def entered(_number: int, line: socket.socket) -> None:
            with agent.changed:
                lines.append(line)
                agent.changed.notify_all()

        key = secrets.token_bytes(KEY_BYTES)
        door = Door(self.host, key, [number], entered, who="process")
        try:
            agent.tell(Begin(number=number, port=door.address[1], key=key.hex()))
            with agent.changed:
                agent.changed.wait_for(
                    lambda: (number in agent.pids and lines) or number in agent.refusals or agent.lost,
                    timeout=max(0.0, until - time.monotonic()),
                )
        finally:
            door.close()
        if number in agent.pids and lines:
            break_where_unread(lines[0])
            return Launched(RemoteProcess(agent, number, lines[0]), lines[0], lines[0].getpeername()[0])
        for line in lines:
            line.close()
        if number in agent.refusals:
            raise OSError(agent.refusals[number])
        if number not in agent.pids:
            state = "has ended" if agent.lost else f"does not answer within {timeout_s:g} s"
            raise OSError(f"the process that torchrun had started for it ({agent}) {state}")
        raise OSError(f"it has not reached the driver at {self.host} within {timeout_s:g} s")

    def places(self, devices: Sequence[str], timeout_s: float) -> list[Place]:
        here = Introduction.own(0)
        introductions = [here] + [self._agent(rank, timeout_s).introduction for rank in range(1, self.world)]
        names = _names_of({given.machine for given in introductions})
        memories = {given.memory: (given.machine[0], given.memory) for given in reversed(introductions)}
        names_of_memories = _names_of(memories.values())
        found = []
        for device, given in zip(devices, introductions, strict=True):
            named = torch.device(device)
            if named.type == "cpu":
                machine = names_of_memories[memories[given.memory]] if given.memory != here.memory else ""
                found.append(Place(machine, "cpu", given.cpu_free_bytes))
            else:
                machine = names[given.machine] if given.machine != here.machine else ""
                named = torch.device("cuda", _own_gpu(given, introductions) if named.index is None else named.index)
                if named.index >= given.gpus:
                    raise PlanMismatch(
                        f"rank {given.rank} is to be on {named} of {names[given.machine]}, where its process sees "
                        f"{given.gpus} GPUs; start as many ranks there with --nproc-per-node, or name other devices"
                    )
                found.append(Place(machine, str(named), None))
        return found

    def readable(self, rank: int, stored: Mapping[str, StoredTensor], timeout_s: float) -> dict[str, Path]:
        agent = self._agent(rank, timeout_s)
        files = {name: each.file for name, each in stored.items()}
        agent.same = None
        digests = {name: each.digest for name, each in stored.items() if each.digest is not None}
        agent.tell(Compare(files=files, digests=digests))
        with agent.changed:
            agent.changed.wait_for(lambda: agent.same is not None or agent.lost, timeout=timeout_s)
            same = agent.same
        return {name: file for name, file in files.items() if same is not None and name in same}

    def close(self) -> None:
        """Let in nobody else, and tell the agents that the program ends; without effect in a forked child."""
        if self.is_owner:
            self._door.close()
            for agent in self._agents.values():
                agent.tell(Goodbye())
