"""LocalMailbox: messages between ranks that are threads of one process, or take turns in one thread."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.errors import EngineError
from runtime.transport.layout import dense
from runtime.transport.mailbox import Mailbox, MessageKey


class LocalMailbox(Mailbox):
    """A send puts the tensor into the reader's mailbox.

    The tensor is laid out in memory as after a transport between processes, so that all transports give the same bits;
    mostly that needs no copy.

    Args:
        rank: whose mailbox it is.
        peers: the mailboxes of all ranks, by rank; complete when the first message is sent.
        device: where the rank computes.
    """

    def __init__(self, rank: int, peers: list[LocalMailbox], device: torch.device) -> None:
        super().__init__(rank)
        self._peers = peers
        self._device = device

    def send(self, readers: Sequence[int], key: MessageKey, tensor: torch.Tensor) -> None:
        laid_out = dense(tensor)
        for reader in readers:
            self.sent_bytes += tensor.nbytes
            peer = self._peers[reader]
            peer.deliver(key, laid_out if laid_out.device == peer._device else laid_out.to(peer._device))

    def close(self) -> None:
        self.fail(EngineError("the engine is closed"))
        with self._changed:
            self._arrived.clear()
