"""Measures what a message between two ranks costs (us): to send, to read, there and back, beside a copy of its bytes.

    python -m tools.measure messages [--messages 300] [--json]

Two ranks send each other tensors and read them as an engine's do: through memory that two processes share, over a TCP
connection of two processes, and as threads of one process. At first each sends a step's message and reads the other's
of the step before, as in async steps: "send" and "read" are the time on the processor that this takes of all threads
of a process, or of the rank's own thread, on average over ten messages, since a rank that is behind reads several at
once. Then each message is answered by one of the same size: "there and back" is the time that passes. Printed are the
least and the median of each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from partitioner.graph.nodes import TensorMeta
from partitioner.tables import table_text
from runtime.transport.local import LocalMailbox
from runtime.transport.mailbox import Expected, Mailbox, MessageKey
from tools.command import command
from tools.measure.joined import TIMEOUT_S, joined

SIZES = {"16 KiB": 16 << 10, "1 MiB": 1 << 20, "16 MiB": 16 << 20}
WIRES = [
    Expected(f"{name} of rank {rank}", TensorMeta((size // 4,), (1,), "float32"), (rank,))
    for name, size in SIZES.items()
    for rank in range(2)
]
TOGETHER = 10  # messages
Times = dict[str, list[float]]  # us, by what was timed


class _Side:
    """One rank's messages of one size; ``index``: of the size. clock: the seconds that it has had on the processor."""

    def __init__(self, mailbox: Mailbox, index: int, clock: Callable[[], float]) -> None:
        self._mailbox = mailbox
        self._clock = clock
        self._tensor = torch.ones(list(SIZES.values())[index] // 4)
        self._own, self._others = (2 * index + rank for rank in (mailbox.rank, 1 - mailbox.rank))

    def send(self, step: int) -> None:
        self._mailbox.send([1 - self._mailbox.rank], MessageKey(0, self._own, 0, step), self._tensor)

    def read(self, step: int) -> None:
        """Read a message, as a worker does, and let go of it."""
        key = MessageKey(0, self._others, 0, step)
        while not self._mailbox.ready(key):
            self._mailbox.wait(key, TIMEOUT_S)
        self._mailbox.take(key)

    def answer(self, step: int) -> None:
        if self._mailbox.rank == 0:
            self.send(step)
        self.read(step)
        if self._mailbox.rank == 1:
            self.send(step)

    def times(self, count: int) -> Times:
        """Of so many messages, and so many that are answered."""
        room = torch.zeros_like(self._tensor)
        found: Times = {"send": [], "read": [], "there and back": [], "copy": []}
        self.send(-1)
        for first in range(0, count, TOGETHER):
            took = {"send": 0.0, "read": 0.0, "copy": 0.0}
            for step in range(first, first + TOGETHER):
                took["send"] += _us(self._clock, self.send, step)
                took["read"] += _us(self._clock, self.read, step - 1)
                took["copy"] += _us(self._clock, lambda _: room.copy_(self._tensor), step)
            for what, us in took.items():
                found[what].append(us / TOGETHER)
        self.read(count - 1)
        for step in range(count, 2 * count):
            found["there and back"].append(_us(time.perf_counter, self.answer, step))
        return found


def _us(clock: Callable[[], float], work: Callable[[int], object], step: int) -> float:
    begin = clock()
    work(step)
    return (clock() - begin) * 1e6


def times_of(count: int, clock: Callable[[], float], mailbox: Mailbox) -> dict[str, Times]:
    """What one rank has timed, by size; see _Side."""
    return {name: _Side(mailbox, index, clock).times(count) for index, name in enumerate(SIZES)}


def _of_threads(count: int) -> list[dict[str, Times]]:
    peers: list[LocalMailbox] = []
    for rank in range(2):
        peers.append(LocalMailbox(rank, peers, torch.device("cpu")))
        peers[rank].register(0, WIRES)
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(partial(times_of, count, time.thread_time), peers))


def measure(count: int) -> dict[str, dict[str, Times]]:
    """The times of both ranks together, by transport and size.

    Raises:
        EngineError: a rank failed.
    """
    torch.set_num_threads(1)
    work = partial(times_of, count, time.process_time)
    ranks = {
        "shared memory": joined(work, WIRES),
        "sockets": joined(work, WIRES, tcp=True),
        "threads": _of_threads(count),
    }
    return {
        transport: {name: {what: [*own, *other[name][what]] for what, own in one[name].items()} for name in SIZES}
        for transport, (one, other) in ranks.items()
    }


@command("tools.measure.messages")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0, 5 if a rank failed."""
    made = argparse.ArgumentParser(prog="python -m tools.measure messages", description=__doc__.split("\n")[0])
    made.add_argument("--messages", type=int, default=300, metavar="N", help="of each kind and rank (default: 300)")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = made.parse_args(argv)
    if options.messages < TOGETHER or options.messages % TOGETHER:
        made.error(f"--messages is a multiple of {TOGETHER}")
    rows: list[dict[str, Any]] = [
        {"transport": transport, "size": size}
        | {what: {"least_us": min(us), "median_us": statistics.median(us)} for what, us in times.items()}
        for transport, sizes in measure(options.messages).items()
        for size, times in sizes.items()
    ]
    if options.json:
        print(json.dumps({"messages": rows}, indent=1))
        return 0
    cells = [
        [
            f"{value['least_us']:.1f}; {value['median_us']:.1f}" if isinstance(value, dict) else value
            for value in row.values()
        ]
        for row in rows
    ]
    print(table_text(["us, least; median", *list(rows[0])[1:]], cells))
    return 0
