"""Timeline: what ranks did when, simulated or recorded; written as a Chrome trace. Pure.

The trace opens in Perfetto (ui.perfetto.dev) and chrome://tracing; under a name that ends in .pt.trace.json also in
TensorBoard, through torch-tb-profiler, whose names for categories and steps it uses. Every rank is a process row, the
driver's has the calls above its spans; arrows are transfers, from the end of the work that makes a tensor to its end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from profiles.json_files import write_atomic

COMPUTE = "compute"  # on its device, gaps between launches included
DRIVER = "driver"  # on the driver's host: the scheduler, guidance, commands
COMMUNICATION = "communication"  # waits for a tensor that is under way: exposed communication
IDLE = "idle"  # waits for a rank that has not got that far
KINDS = (COMPUTE, DRIVER, COMMUNICATION, IDLE)


@dataclass(frozen=True, slots=True)
class Span:
    """What a rank did from ``start_ms`` to ``end_ms``: one of KINDS, and a name for people."""

    rank: int
    kind: str
    name: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """A tensor on its way: sent by its maker, on the wire from ``begin_ms``, readable from ``arrived_ms`` on."""

    source: int
    reader: int
    name: str
    size_bytes: int
    sent_ms: float
    begin_ms: float
    arrived_ms: float


@dataclass(frozen=True)
class Timeline:
    """Spans of every rank in order of time, and the transfers between them. ends_ms: when each call had ended."""

    ranks: int
    spans: tuple[Span, ...]
    transfers: tuple[Transfer, ...]
    ends_ms: tuple[float, ...]

    def times_between(self, start_ms: float, end_ms: float) -> dict[tuple[int, str], float]:
        """(rank, kind) -> time in ms that the rank spends in spans of that kind between two moments."""
        found = {(rank, kind): 0.0 for rank in range(self.ranks) for kind in KINDS}
        for span in self.spans:
            found[span.rank, span.kind] += max(0.0, min(span.end_ms, end_ms) - max(span.start_ms, start_ms))
        return found


def chrome_trace(timeline: Timeline, rank_names: Sequence[str] | None = None, **about: str) -> dict[str, Any]:
    """The trace as a JSON document; times become microseconds. about: what the trace should say of itself."""
    names = rank_names or [f"rank {rank}" for rank in range(timeline.ranks)]
    events: list[dict[str, Any]] = []
    for rank, name in enumerate(names):
        events.append({"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": name}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "args": {"sort_index": rank}})
    # torch-tb-profiler tells rows apart by tid alone: 0 has the calls, 1 + rank the rank's spans
    start = 0.0
    for call, end in enumerate(timeline.ends_ms):
        events.append(_duration("user_annotation", f"ProfilerStep#{call}", 0, 0, start, end))
        start = end
    for span in timeline.spans:
        kind = {"args": {"kind": span.kind}}
        events.append(_duration("cpu_op", span.name, span.rank, 1 + span.rank, span.start_ms, span.end_ms) | kind)
    for number, transfer in enumerate(timeline.transfers):
        arrow = {"cat": "transfer", "name": transfer.name, "id": number, "args": {"bytes": transfer.size_bytes}}
        source, reader = ({"pid": rank, "tid": 1 + rank} for rank in (transfer.source, transfer.reader))
        events.append(arrow | source | {"ph": "s", "ts": _us(transfer.sent_ms)})
        events.append(arrow | reader | {"ph": "f", "bp": "e", "ts": _us(transfer.arrived_ms)})
    return {"schemaVersion": 1, "displayTimeUnit": "ms", "otherData": dict(about), "traceEvents": events}


def write_trace(path: str | os.PathLike[str], document: dict[str, Any], overwrite: bool = False) -> None:
    """Write a chrome_trace document, whole or not at all; JsonFileError if it exists or cannot be written."""
    write_atomic(path, (json.dumps(document, allow_nan=False) + "\n").encode(), overwrite)


def _duration(category: str, name: str, rank: int, row: int, start_ms: float, end_ms: float) -> dict[str, Any]:
    us = {"ts": _us(start_ms), "dur": _us(end_ms - start_ms)}
    return {"ph": "X", "cat": category, "name": name, "pid": rank, "tid": row, **us}


def _us(ms: float) -> float:
    return round(ms * 1e3, 3)
