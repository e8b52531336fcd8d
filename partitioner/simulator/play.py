"""play: what every rank does when, from their scripts; deterministic and free of torch.

Each rank has a host, which launches work, and a device, which does it in order; the host runs ahead until an action
makes it wait. Every rank has one port out and one port in: a transfer holds both for the time of its bytes, and arrives
a latency later. On a shared bus all transfers take turns. Of two ranks, one tensor:

    rank 0   host     |launch|launch|
             device          |  work  |  work  |
             port out                 |= bytes =|           sent when the device has made it
    rank 1   port in                  |= bytes =|
             device   |  idle         | communication  |  work  |
                                                 ^ + latency: arrived
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from partitioner.plan.timeline import COMMUNICATION, COMPUTE, DRIVER, IDLE, Span, Timeline, Transfer
from partitioner.simulator.actions import Action, Await, Broadcast, Emit, HostWork, MessageId, Work
from partitioner.simulator.machine import Machine


@dataclass
class _Rank:
    script: Sequence[Action]
    position: int = 0
    host_ms: float = 0.0
    device_ms: float = 0.0


@dataclass
class _Play:
    machine: Machine
    ranks: list[_Rank]
    arrived: dict[tuple[MessageId, int], Transfer] = field(default_factory=dict)
    waiting: dict[tuple[MessageId, int], int] = field(default_factory=dict)
    gathered: dict[MessageId, list[int]] = field(default_factory=dict)
    port_free: dict[tuple[str, int], float] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    queue: list[tuple[float, int]] = field(default_factory=list)

    def run(self) -> None:
        self.queue = [(0.0, rank) for rank in range(len(self.ranks))]
        # the rank that is furthest back acts next, so that messages meet the ports in the order of time
        while self.queue:
            _, rank = heapq.heappop(self.queue)
            state = self.ranks[rank]
            if state.position < len(state.script) and self.act(rank, state, state.script[state.position]):
                state.position += 1
                heapq.heappush(self.queue, (state.device_ms, rank))

    def act(self, rank: int, state: _Rank, action: Action) -> bool:
        """Do one action; False if the rank has to wait (it is queued again by what it waits for)."""
        if isinstance(action, Work):
            end = max(state.device_ms + action.device_ms, state.host_ms + action.lead_ms)
            self.note(rank, COMPUTE, action.name, state.device_ms, end)
            state.device_ms = end
            state.host_ms += action.launch_ms
        elif isinstance(action, HostWork):
            start = max(state.host_ms, state.device_ms)
            self.note(rank, DRIVER, action.name, state.device_ms, start + action.ms)
            state.host_ms = state.device_ms = start + action.ms
        elif isinstance(action, Emit):
            for reader in action.readers:
                self.send(rank, reader, action, state.device_ms)
        elif isinstance(action, Await):
            transfer = self.arrived.get((action.key, rank))
            if transfer is None:
                self.waiting[action.key, rank] = rank
                return False
            self.note(rank, IDLE, f"waits for {transfer.name}", state.device_ms, transfer.sent_ms)
            began = max(state.device_ms, transfer.sent_ms)
            self.note(rank, COMMUNICATION, f"receives {transfer.name}", began, transfer.arrived_ms)
            state.device_ms = max(state.device_ms, transfer.arrived_ms)
            state.host_ms = max(state.host_ms, transfer.arrived_ms)
        elif isinstance(action, Broadcast):
            return self.join(rank, action)
        else:
            self.ends.append(state.device_ms)
        return True

    def send(self, source: int, reader: int, action: Emit, now_ms: float) -> None:
        link = self.machine.links[source, reader]
        ports = [("bus", 0)] if self.machine.shared_bus else [("out", source), ("in", reader)]
        begin = max(now_ms, *(self.port_free.get(port, 0.0) for port in ports))
        gone = begin + link.bytes_ms(action.size_bytes)
        self.port_free.update(dict.fromkeys(ports, gone))
        transfer = Transfer(source, reader, action.name, action.size_bytes, now_ms, begin, gone + link.latency_ms)
        self.transfers.append(transfer)
        self.arrived[action.key, reader] = transfer
        if self.waiting.pop((action.key, reader), None) is not None:
            heapq.heappush(self.queue, (self.ranks[reader].device_ms, reader))

    def join(self, rank: int, action: Broadcast) -> bool:
        """The last rank to come starts the broadcast for all of them."""
        there = self.gathered.setdefault(action.key, [])
        there.append(rank)
        if len(there) < len(self.ranks):
            return False
        del self.gathered[action.key]
        start = max(state.device_ms for state in self.ranks)
        end = start + self.machine.broadcast_ms(action.size_bytes)
        for other, state in enumerate(self.ranks):
            self.note(other, IDLE, f"waits for the others' {action.name}", state.device_ms, start)
            self.note(other, COMMUNICATION, f"broadcast {action.name}", start, end)
            if other != action.root:
                self.transfers.append(Transfer(action.root, other, action.name, action.size_bytes, start, start, end))
            state.device_ms = end
            if other != rank:
                state.position += 1
                heapq.heappush(self.queue, (end, other))
        return True

    def note(self, rank: int, kind: str, name: str, start: float, end: float) -> None:
        if end > start:
            self.spans.append(Span(rank, kind, name, start, end))


def play(machine: Machine, scripts: Sequence[Sequence[Action]]) -> Timeline:
    """Play the scripts, one per rank. ValueError shows where each rank stands if they wait for each other forever."""
    run = _Play(machine, [_Rank(script) for script in scripts])
    run.run()
    stuck = [
        f"rank {rank} at {state.script[state.position]}"
        for rank, state in enumerate(run.ranks)
        if state.position < len(state.script)
    ]
    if stuck:
        raise ValueError("the ranks wait for each other forever: " + "; ".join(stuck))
    spans = sorted(run.spans, key=lambda span: (span.start_ms, span.rank))
    return Timeline(machine.ranks, tuple(spans), tuple(run.transfers), tuple(run.ends))
