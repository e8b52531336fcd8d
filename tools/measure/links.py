"""Measures latency (us) and bandwidth (GB/s) between every ordered pair of ranks, through the engine's own transport.

    python -m tools.measure links --ranks 2 [--output devices.json] [--name cpu] [--json]

Starts one process per rank on this machine, joined as the engine's ranks are. In turn, each rank of a pair sends
messages to the other, which answers each with a few bytes:

    sender   4 B ->            16 MB ->            4 B -> ...
    reader           4 B <-             4 B <-

Half of the fastest exchange of a small message is the latency; what the fastest exchange of a large one takes longer is
due to its bytes. --output writes the ranks as devices, as `partition-model --devices` takes them; the other figures of
a device come from the data sheet --name.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import torch

from partitioner.errors import UsageError
from partitioner.fleet import known_device
from partitioner.graph.nodes import TensorMeta
from partitioner.simulator.machine import Link
from partitioner.tables import table_text
from profiles.json_files import write_atomic
from runtime.transport.mailbox import Expected, Mailbox, MessageKey
from tools.command import command
from tools.measure.joined import TIMEOUT_S, joined

SMALL, LARGE = 4, 16 << 20  # bytes
REPEATS = 15


def measure_links(ranks: int) -> dict[tuple[int, int], Link]:
    """Measure the links between so many processes on this machine.

    Returns:
        (sender, reader) -> the link from one to the other.

    Raises:
        ValueError: fewer than two ranks.
        EngineError: a rank failed or does not answer.
    """
    if ranks < 2:
        raise ValueError(f"links join two ranks at least; got {ranks}")
    wires = [Expected(f"{size} bytes", _meta(size), (r,)) for r in range(ranks) for size in (SMALL, LARGE)]
    found: dict[tuple[int, int], Link] = {}
    for own in joined(partial(_time_own, ranks), wires, ranks=ranks):
        found |= own
    return dict(sorted(found.items()))


def _time_own(ranks: int, mailbox: Mailbox) -> dict[tuple[int, int], Link]:
    """The links from a rank's process, which answers the others' messages too."""
    found = {}
    for context, (sender, reader) in enumerate(permutations(range(ranks), 2)):
        exchange = _Exchange(sender, reader, context)
        if mailbox.rank == sender:
            found[sender, reader] = _time(mailbox, exchange)
        elif mailbox.rank == reader:
            _answer(mailbox, exchange)
    return found


def _meta(size_bytes: int) -> TensorMeta:
    return TensorMeta((size_bytes // 4,), (1,), "float32")


@dataclass(frozen=True)
class _Exchange:
    """Keys of the messages of ``sender`` and the answers of ``reader``; every pair has a ``context`` of its own."""

    sender: int
    reader: int
    context: int

    def message(self, number: int) -> MessageKey:
        """Of the message of that number: small for even numbers, large for odd ones."""
        return MessageKey(0, 2 * self.sender + number % 2, self.context, number)

    def answer(self, number: int) -> MessageKey:
        return MessageKey(0, 2 * self.reader, self.context, number)


def _time(mailbox: Mailbox, exchange: _Exchange) -> Link:
    """The sender's side: time messages and their answers."""
    took: list[list[float]] = [[], []]
    for number in range(2 * REPEATS):
        tensor = torch.zeros((SMALL, LARGE)[number % 2] // 4)
        start = time.perf_counter()
        mailbox.send([exchange.reader], exchange.message(number), tensor)
        _take(mailbox, exchange.answer(number))
        took[number % 2].append((time.perf_counter() - start) * 1e3)
    short, long = map(min, took)  # whatever else runs on the machine only adds to it
    return Link(latency_ms=short / 2, gb_per_s=LARGE / (max(long - short, 1e-6) * 1e6))


def _answer(mailbox: Mailbox, exchange: _Exchange) -> None:
    """The reader's side."""
    for number in range(2 * REPEATS):
        _take(mailbox, exchange.message(number))
        mailbox.send([exchange.sender], exchange.answer(number), torch.zeros(SMALL // 4))


def _take(mailbox: Mailbox, key: MessageKey) -> torch.Tensor:
    mailbox.wait(key, TIMEOUT_S)
    return mailbox.take(key)


def describe(links: Mapping[tuple[int, int], Link], name: str) -> dict[str, Any]:
    """The ranks as a file of devices, each with the slowest of the links that lead to it."""
    sheet = known_device(name)
    devices = []
    for rank in sorted({reader for _, reader in links}):
        ways = [link for (_, reader), link in links.items() if reader == rank]
        devices.append({
            "name": sheet.name,
            "link_gb_per_s": round(min(link.gb_per_s for link in ways), 3),
            "latency_us": round(max(link.latency_ms for link in ways) * 1e3, 1),
        })  # fmt: skip
    return {"devices": devices}


@command("tools.measure.links")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0, 2 for a wrong option or a file that cannot be written, 5 if a rank failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.measure links", description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--name", default="cpu", help="data sheet of the ranks' device; default: cpu")
    parser.add_argument("--output", type=Path, help="write the ranks as devices, for partition-model --devices")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(arguments)
    if options.ranks < 2:
        parser.error(f"--ranks {options.ranks}: links join two ranks at least")
    known_device(options.name)
    if options.output is not None and options.output.exists():
        raise UsageError(f"{options.output} exists already; choose another name")
    links = measure_links(options.ranks)
    if options.output is not None:
        text = json.dumps(describe(links, options.name), indent=1) + "\n"
        write_atomic(options.output, text.encode(), False)
    rows = [
        {"sender": a, "reader": b, "latency_us": link.latency_ms * 1e3, "gb_per_s": link.gb_per_s}
        for (a, b), link in links.items()
    ]
    if options.json:
        print(json.dumps({"links": rows}, indent=1, allow_nan=False))
    else:
        cells = [
            [str(a), str(b), f"{link.latency_ms * 1e3:.1f}", f"{link.gb_per_s:.2f}"] for (a, b), link in links.items()
        ]
        print(table_text(["sender", "reader", "latency, us", "bandwidth, GB/s"], cells))
    return 0
