"""Payload: the bytes of a message that has come, in their slot."""

from __future__ import annotations

from collections.abc import Callable

import torch

from runtime.devices.stream import Event
from runtime.transport.layout import Layout
from runtime.transport.memory import Slot


class Payload:
    """The bytes of a message that has come, in their slot.

    Args:
        layout: of the message.
        slot: where it lies.
        returned: gives the slot back.
    """

    __slots__ = ("_layout", "_returned", "_slot", "is_there")

    def __init__(self, layout: Layout, slot: Slot, returned: Callable[[], None]) -> None:
        self._layout = layout
        self._returned = returned
        self.is_there = slot.is_written
        self._slot = slot

    def tensor(self) -> tuple[torch.Tensor, Event | None]:
        """The message, once it is there, and the event from which on it holds its values; None: it does already."""
        return self._slot.lend(self._layout, self._returned)

    def drop(self) -> None:
        """Nobody wants it."""
        self._returned()


class NoSlot(Slot):
    """Where messages without bytes lie."""

    size_bytes = 0

    def write(self, tensor: torch.Tensor, layout: Layout) -> None:
        pass

    def lend(self, layout: Layout, returned: Callable[[], None]) -> tuple[torch.Tensor, None]:
        return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype), None
