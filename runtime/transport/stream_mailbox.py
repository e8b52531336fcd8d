"""StreamMailbox: messages between ranks that are threads of one process, some of them on GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.devices.stream import DeviceStream, Event
from runtime.transport.layout import dense
from runtime.transport.local import LocalMailbox
from runtime.transport.mailbox import MessageKey


class StreamMailbox(LocalMailbox):
    """A LocalMailbox whose messages may have arrived on the host before their values are on the device.

    Each then has an event, for which the reader's device stream waits when the message is taken. ``send`` and ``take``
    are called by the rank's own thread, inside its device stream.

    Args:
        peers: the mailboxes of all ranks, by rank; complete when the first message is sent.
        stream: the rank's device stream.
    """

    def __init__(self, peers: list[StreamMailbox], stream: DeviceStream) -> None:
        super().__init__(stream.rank, [], stream.device)
        self.stream = stream
        self._others = peers
        self._there: dict[MessageKey, Event] = {}

    def send(self, readers: Sequence[int], key: MessageKey, tensor: torch.Tensor) -> None:
        laid_out = dense(tensor)
        made = self.stream.now()
        for reader in readers:
            self.sent_bytes += tensor.nbytes
            peer = self._others[reader]
            peer.deliver_at(key, *peer.stream.fetch(laid_out, made, self.stream))

    def deliver_at(self, key: MessageKey, tensor: torch.Tensor, there: Event | None) -> None:
        """Put in a message whose values are there from the event ``there`` on; None: they are."""
        with self._changed:
            self.deliver(key, tensor)
            if there is not None and key in self._arrived:
                self._there[key] = there

    def take(self, key: MessageKey) -> torch.Tensor:
        with self._changed:
            tensor = super().take(key)
            there = self._there.pop(key, None)
        if there is not None:
            self.stream.accept(tensor, there)
        return tensor

    def unregister(self, tables: Sequence[int]) -> None:
        with self._changed:
            super().unregister(tables)
            self._there = {key: there for key, there in self._there.items() if key in self._arrived}

    def forget(self, context: int, before_step: int, ahead: int | None = None) -> None:
        with self._changed:
            super().forget(context, before_step, ahead)
            self._there = {key: there for key, there in self._there.items() if key in self._arrived}
