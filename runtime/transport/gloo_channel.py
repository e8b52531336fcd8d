"""GlooChannel: one rank's way to another over gloo."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import torch

from runtime.transport.header import HEADER_TAG, PAYLOAD_TAG, RECEIVED, SEQUENCE

_UNSAID_MESSAGES, _UNSAID_BYTES = 16, 2**20  # how much may arrive before a receipt is sent for it


class GlooChannel:
    """The messages to one peer: numbered, and kept until the peer's headers say that they have arrived.

    That they have cannot be asked of gloo, which never ends the wait for a send whose bytes it was writing when the
    connection broke. So every header says how many messages its sender has received from its reader; where there is no
    message to be sent back, a receipt, which is a header alone, says so after 16 messages or 1 MiB. Receipts are sent
    for messages only, never for receipts.

    Args:
        group: the gloo group that the peer is in.
        peer: its rank.
    """

    def __init__(self, group: Any, peer: int) -> None:
        self._group = group
        self._peer = peer
        self._lock = threading.Lock()
        self._kept: deque[tuple[Any, ...]] = deque()
        self._unsaid_messages = self._unsaid_bytes = 0
        self.sent = 0
        self.received = 0

    def send(self, header: list[int], payload: torch.Tensor | None) -> None:
        """Send a message.

        Args:
            header: its words; those of sequence and received are filled in here.
            payload: its bytes, None where there are none.

        Raises:
            RuntimeError: the connection is known to be broken.
        """
        with self._lock:
            header[SEQUENCE], header[RECEIVED] = self.sent, self.received
            self.sent += 1  # first, because the answer may be there before this returns
            self._unsaid_messages = self._unsaid_bytes = 0
            words = torch.tensor(header)
            works = [self._group.send([words], self._peer, HEADER_TAG)]
            if payload is not None:
                works.append(self._group.send([payload], self._peer, PAYLOAD_TAG))
            self._kept.append((works, words, payload))

    def arrived(self, size_bytes: int | None) -> bool:
        """Count a message that has arrived; returns whether a receipt should be sent now.

        Args:
            size_bytes: of the message; None if it was a receipt.
        """
        with self._lock:
            self.received += 1
            if size_bytes is None:
                return False
            self._unsaid_messages += 1
            self._unsaid_bytes += size_bytes
            return self._unsaid_messages >= _UNSAID_MESSAGES or self._unsaid_bytes >= _UNSAID_BYTES

    @property
    def kept(self) -> int:
        """How many messages and receipts were sent that are not known to have arrived."""
        return len(self._kept)

    def let_go(self, received: int) -> None:
        """Forget what the peer has received: all but the last ``sent - received``."""
        with self._lock:
            while len(self._kept) > self.sent - received:
                self._kept.popleft()

    def close(self) -> None:
        """Forget everything, the group included."""
        with self._lock:
            self._kept.clear()
            self._group = None
