"""Recording: what each rank did and when, in a real run, as the same Timeline that the simulator makes.

Ranks of one machine share its monotonic clock, on which all times stand.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from partitioner.plan.timeline import COMMUNICATION, COMPUTE, DRIVER, IDLE, Span, Timeline, Transfer

MOST_MARKS = 100_000  # of one rank; some 40 MB
MOST_CALLS = 100_000

MessageName = tuple[int, ...]  # a MessageKey; with the reading rank it names one transfer


@dataclass(frozen=True, slots=True)
class Computed:
    """A run of nodes, from ``start`` to ``end`` in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Sent:
    """A tensor that was handed to the transport, for the ranks ``readers``; ``at``: when, in seconds."""

    message: MessageName
    readers: tuple[int, ...]
    name: str
    size_bytes: int
    at: float


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that was waited for from ``start`` and was there at ``end``, in seconds."""

    message: MessageName
    name: str
    start: float
    end: float


Mark = Computed | Sent | Taken


@dataclass
class Recorder:
    """One rank's marks, in order; in the long run the last ones, MOST_MARKS at least. Others may read them."""

    marks: list[Mark] = field(default_factory=list)

    def add(self, mark: Mark) -> None:
        """Note what was done."""
        self.marks.append(mark)
        if len(self.marks) >= 2 * MOST_MARKS:
            del self.marks[:-MOST_MARKS]

    @staticmethod
    def now() -> float:
        return time.monotonic()


def assemble(marks: Mapping[int, Sequence[Mark]], calls: Sequence[tuple[float, float]]) -> Timeline:
    """The timeline of a run.

    A wait is idle until the message was sent, and communication from then on. Between calls the driver does the
    pipeline's own work. A transfer has arrived when its reader takes it. Where a rank has more than it keeps, the
    timeline begins with the first call that all ranks have recorded whole.

    Args:
        marks: what each rank recorded, by rank.
        calls: start and end of the driver's denoiser calls, in seconds.
    """
    lost_until = max((_start(own[0]) for own in marks.values() if len(own) >= MOST_MARKS), default=None)
    if lost_until is not None:
        calls = [call for call in calls if call[0] > lost_until] or list(calls[-1:])
    begin = calls[0][0] if calls else 0.0
    # what ranks were told before the first call (their parameters, say) is not of the trajectory
    recorded = {rank: [mark for mark in own if _start(mark) >= begin] for rank, own in marks.items()}
    sent = {
        (mark.message, reader): (rank, mark)
        for rank, own in recorded.items()
        for mark in own
        if isinstance(mark, Sent)
        for reader in mark.readers
    }

    def ms(seconds: float) -> float:
        return (seconds - begin) * 1e3

    spans: list[Span] = []
    transfers: list[Transfer] = []
    for rank, own in recorded.items():
        for mark in own:
            if isinstance(mark, Computed):
                spans.append(Span(rank, COMPUTE, mark.name, ms(mark.start), ms(mark.end)))
            elif isinstance(mark, Taken):
                source, message = sent.get((mark.message, rank), (rank, None))
                under_way = min(max(message.at, mark.start), mark.end) if message is not None else mark.end
                for kind, start, end in ((IDLE, mark.start, under_way), (COMMUNICATION, under_way, mark.end)):
                    if end > start:
                        spans.append(Span(rank, kind, f"wait for {mark.name}", ms(start), ms(end)))
                if message is not None:
                    at, had = ms(message.at), ms(max(mark.end, message.at))
                    transfers.append(Transfer(source, rank, mark.name, message.size_bytes, at, at, had))
    for (_, end), (start, _) in pairwise(calls):
        spans.append(Span(0, DRIVER, "pipeline", ms(end), ms(start)))
    return Timeline(
        ranks=len(recorded),
        spans=tuple(sorted(spans, key=lambda span: (span.rank, span.start_ms))),
        transfers=tuple(sorted(transfers, key=lambda transfer: transfer.sent_ms)),
        ends_ms=tuple(ms(end) for _, end in calls),
    )


def _start(mark: Mark) -> float:
    return mark.at if isinstance(mark, Sent) else mark.start
