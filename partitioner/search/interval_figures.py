"""IntervalFigures: what components cost that are runs of nodes, as arrays with an element per component."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from partitioner.search.arrays import Bools, Floats, Ints
from partitioner.search.devices import Devices
from partitioner.search.mode import Mode
from partitioner.search.problem import KEPT_MESSAGES


@dataclass(frozen=True, slots=True)
class IntervalFigures:
    """Additive figures of components, one array element each. load_ms is at speed 1."""

    load_ms: Floats
    receive_bytes: Floats
    messages: Floats
    staleness: Floats
    item_bytes: Floats
    activation_bytes: Floats

    def step_ms(self, devices: Devices, device: int, mode: Mode) -> Floats:
        """T of each component on that device; see mode.step_ms."""
        load = self.load_ms / devices.speeds[device]
        receive = self.messages * devices.latency_ms[device] + self.receive_bytes / (
            devices.link_gb_per_s[device] * 1e6
        )
        return np.maximum(load, receive) if mode == "lookahead" else load + receive

    def memory_bytes(self) -> Floats:
        """Shared items, activations and received boundary tensors."""
        return self.item_bytes + self.activation_bytes + KEPT_MESSAGES * self.receive_bytes

    def at(self, index: Ints) -> IntervalFigures:
        """The figures of some of the components."""
        return IntervalFigures(*(getattr(self, name)[index] for name in IntervalFigures.__dataclass_fields__))

    def score(self, mode: Mode, byte_weight: float) -> Floats:
        """What is minimised among splits of about the same T: staleness (in async) + byte_weight x (bytes that are
        sent in a step + bytes of the shared items that are held, so that copies of them are avoided)."""
        weighted = byte_weight * (self.receive_bytes + self.item_bytes)
        return weighted if mode == "lookahead" else self.staleness + weighted


def fits(figures: IntervalFigures, devices: Devices, device: int) -> Bools:
    """Where the components fit the device's memory."""
    limit = devices.memory_bytes[device]
    memory = figures.memory_bytes()
    return np.ones(memory.shape, dtype=np.bool_) if math.isinf(limit) else memory <= limit
