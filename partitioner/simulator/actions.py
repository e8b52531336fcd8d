"""What a rank can do on a simulated machine; a rank's script is a list of these."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

MessageId = Hashable


@dataclass(frozen=True, slots=True)
class Work:
    """Nodes on the device. device_ms: all their times; launch_ms: the host's time to launch all of them; lead_ms: from
    the first launch to the end of the last, were the device idle before."""

    name: str
    device_ms: float
    launch_ms: float = 0.0
    lead_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class HostWork:
    """Work of the host that waits for the device and that the device waits for."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Emit:
    """Send what the device has just made to some ranks; the rank goes on at once."""

    key: MessageId
    name: str
    size_bytes: int
    readers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until the message has arrived."""

    key: MessageId


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A collective that every rank joins and that blocks every device until all have the data."""

    key: MessageId
    name: str
    size_bytes: int
    root: int


@dataclass(frozen=True, slots=True)
class EndCall:
    """The call ``call`` has ended; for rank 0 only."""

    call: int


Action = Work | HostWork | Emit | Await | Broadcast | EndCall


def work(name: str, nodes_ms: Sequence[float], launch_ms: float) -> Work:
    """Nodes of given times, each launched in ``launch_ms``; nodes that take no time are not launched."""
    times = [ms for ms in nodes_ms if ms > 0]
    total = rest = sum(times)
    lead = 0.0
    for number, ms in enumerate(times, start=1):
        lead = max(lead, number * launch_ms + rest)
        rest -= ms
    return Work(name, total, launch_ms * len(times), lead)
