"""Memory that two processes of one machine share: the interface of a slot, which holds one message at a time.

    HostMemory     runtime.transport.shared_memory
    DeviceMemory   runtime.transport.ipc
    StagedMemory   runtime.transport.staged

The sender makes slots, in regions of shared memory, and describes each to the reader once. A slot is written to by the
one and read by the other; the channel sees to it that they take turns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from runtime.devices.stream import Event
from runtime.transport.layout import Layout


class Slot(ABC):
    """Room for one message. size_bytes: the longest."""

    size_bytes: int

    def is_free(self) -> bool:
        """Whether the work that reads what the reader has given back is done; the sender's side."""
        return True

    def is_written(self) -> bool:
        """Whether the message is there; the reader's side."""
        return True

    @abstractmethod
    def write(self, tensor: torch.Tensor, layout: Layout) -> None:
        """Put in a tensor of that layout; the sender's side, when the slot is free."""

    @abstractmethod
    def lend(self, layout: Layout, returned: Callable[[], None]) -> tuple[torch.Tensor, Event | None]:
        """The message, once it is there, as a tensor that must not be written to; the reader's side.

        Args:
            layout: of the message.
            returned: called, by any thread, when the slot may be written to again.

        Returns:
            The tensor, and the event from which on it holds its values; None: it does already.
        """


class Memory(ABC):
    """One kind of memory, as one process uses it with one other.

    name: in words. keeps: whether slots are never let go of, but used again for other wires.
    """

    name: str
    keeps = False

    @abstractmethod
    def make(self, owner: int, size_bytes: int) -> tuple[Slot, bytes, list[int]]:
        """A new slot, the sender's side.

        Args:
            owner: of one owner, slots may lie side by side, and their memory goes when the last one does.
            size_bytes: of the longest message.

        Returns:
            The slot; its description for ``open``; descriptors of files that go with it, to be closed once sent.
        """

    @abstractmethod
    def open(self, description: bytes, files: Sequence[int]) -> Slot:
        """The reader's side of a slot that the other process has made.

        Args:
            description: what ``make`` returned there.
            files: the descriptors that came with it; closed here.

        Raises:
            ValueError: there is no such slot.
            OSError, RuntimeError: its memory cannot be shared.
        """

    @abstractmethod
    def forget(self, owner: int) -> None:
        """Make no more slots for an owner."""

    @abstractmethod
    def close(self) -> None:
        """No slot will be used any more; copies that are under way may end first."""
