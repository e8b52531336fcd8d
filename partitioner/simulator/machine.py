"""Machine: simulated devices and the links between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two ranks. gb_per_s: 1e9 bytes per second that arrive."""

    latency_ms: float
    gb_per_s: float

    def bytes_ms(self, size_bytes: int) -> float:
        """Time in ms that so many bytes take, without latency."""
        return size_bytes / (self.gb_per_s * 1e6)


FREE = Link(0.0, float("inf"))


@dataclass(frozen=True)
class Machine:
    """speeds: of each rank, relative to the device that costs are of. links: by (sender, reader).

    shared_bus: transfers take turns on one bus. launch_ms: host time to launch one node, where costs are those of
    kernels. driver_ms: the driver's own work per call (the pipeline's scheduler and guidance).
    """

    speeds: tuple[float, ...]
    links: Mapping[tuple[int, int], Link]
    shared_bus: bool = False
    launch_ms: float = 0.0
    driver_ms: float = 0.0

    @classmethod
    def uniform(
        cls, ranks: int, link: Link, *, launch_ms: float = 0.0, driver_ms: float = 0.0, shared_bus: bool = False
    ) -> Machine:
        """Equal devices, each joined to each by the same kind of link."""
        links = {(a, b): link for a in range(ranks) for b in range(ranks) if a != b}
        return cls((1.0,) * ranks, links, shared_bus, launch_ms, driver_ms)

    @property
    def ranks(self) -> int:
        return len(self.speeds)

    def broadcast_ms(self, size_bytes: int) -> float:
        """Time of a broadcast along the ring 0, 1, ...: the bytes flow through it, as fast as its slowest link."""
        ring = [self.links[rank, rank + 1] for rank in range(self.ranks - 1)]
        return sum(link.latency_ms for link in ring) + max((w.bytes_ms(size_bytes) for w in ring), default=0.0)
