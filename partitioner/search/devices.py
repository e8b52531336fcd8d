"""Devices: what a solver may know of the devices of one branch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from partitioner.errors import UsageError


@dataclass(frozen=True)
class Devices:
    """The devices of one branch, one per component.

    speeds: relative to the device that the costs hold for (2 is twice as fast). memory_bytes: limit for parameters,
    activations and boundary buffers; inf for none. link_gb_per_s, latency_ms: how fast a device receives (1e9 bytes per
    second, one direction, what is really reached), and what each message costs on top.
    """

    names: tuple[str, ...]
    speeds: tuple[float, ...]
    memory_bytes: tuple[float, ...]
    link_gb_per_s: tuple[float, ...]
    latency_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        figures = (self.speeds, self.memory_bytes, self.link_gb_per_s, self.latency_ms)
        if not self.names or any(len(figure) != len(self.names) for figure in figures):
            raise UsageError(f"each of the {len(self.names)} devices needs a speed, a memory, a link and a latency")
        for name, speed, memory, link, latency in zip(self.names, *figures, strict=True):
            if not (0 < speed < math.inf and memory > 0 and link > 0 and 0 <= latency < math.inf):
                raise UsageError(
                    f"device {name}: speed, memory and link must be above zero and latency not negative; "
                    f"got speed {speed}, {memory} bytes, {link} GB/s, {latency} ms"
                )

    @classmethod
    def equal(
        cls,
        count: int,
        *,
        name: str = "device",
        speed: float = 1.0,
        memory_bytes: float = math.inf,
        link_gb_per_s: float = math.inf,
        latency_ms: float = 0.0,
    ) -> Devices:
        """``count`` devices of one kind."""
        if count < 1:
            raise UsageError(f"at least one device is needed; got {count}")
        return cls(
            (name,) * count, (speed,) * count, (memory_bytes,) * count, (link_gb_per_s,) * count, (latency_ms,) * count
        )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def kinds(self) -> tuple[tuple[int, ...], ...]:
        """Devices that are alike in every figure, by kind, in order of their first."""
        found: dict[tuple[float, ...], list[int]] = {}
        for d in range(len(self)):
            found.setdefault(self.figures(d), []).append(d)
        return tuple(tuple(members) for members in found.values())

    def figures(self, device: int) -> tuple[float, ...]:
        """Speed, memory, link and latency of a device."""
        return self.speeds[device], self.memory_bytes[device], self.link_gb_per_s[device], self.latency_ms[device]

    def receive_ms(self, device: int, size_bytes: float, messages: float) -> float:
        """Time in ms in which the device receives so many messages of so many bytes in all."""
        return messages * self.latency_ms[device] + size_bytes / (self.link_gb_per_s[device] * 1e6)

    def with_less_memory(self, size_bytes: float) -> Devices:
        """The same devices with so much less memory each."""
        return replace(self, memory_bytes=tuple(memory - size_bytes for memory in self.memory_bytes))

    def reordered(self, order: Sequence[int]) -> Devices:
        """The same devices in another order."""
        return Devices(
            tuple(self.names[d] for d in order),
            tuple(self.speeds[d] for d in order),
            tuple(self.memory_bytes[d] for d in order),
            tuple(self.link_gb_per_s[d] for d in order),
            tuple(self.latency_ms[d] for d in order),
        )
