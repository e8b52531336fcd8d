"""MixedMailbox: messages between ranks that are processes, some on this machine and some on others.

Those of this machine go through memory that both share, the others over sockets (runtime.transport.sockets). Threads of
sockets put aside what has come and wake the one that waits, which takes it in, as it does what comes from ranks here.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch

from runtime.transport.mailbox import MessageKey
from runtime.transport.network_staging import network_staging
from runtime.transport.payload import Payload
from runtime.transport.same_machine import SameMachineMailbox, out_of_inference_mode
from runtime.transport.sockets import SocketPeers


class MixedMailbox(SameMachineMailbox):
    """One rank's side of the transport where not all others are on its machine.

    Args:
        rank: this process's.
        lines: rank of this machine -> this rank's end of the line to it.
        far_lines: rank of another machine -> the connected socket to it.
        device, plan_hash, announce_timeout_s, on_error: see SameMachineMailbox.
    """

    def __init__(
        self,
        rank: int,
        lines: Mapping[int, socket.socket],
        far_lines: Mapping[int, socket.socket],
        device: torch.device,
        *,
        plan_hash: int,
        announce_timeout_s: float,
        on_error: Callable[[BaseException], None],
    ) -> None:
        super().__init__(
            rank, lines, device, plan_hash=plan_hash, announce_timeout_s=announce_timeout_s, on_error=on_error
        )
        self.copies_sent = device.type == "cuda"  # sockets send what is on a CPU from where it lies
        self._landed: deque[tuple[MessageKey, Payload]] = deque()
        self._staging = network_staging(device)
        self._far = SocketPeers(self, far_lines, self._put_aside, self._staging)

    @property
    def slot_bytes(self) -> int:
        return super().slot_bytes + (self._staging.slot_bytes if self._staging is not None else 0)

    def send(self, readers: Sequence[int], key: MessageKey, tensor: torch.Tensor) -> None:
        far = [reader for reader in readers if reader in self._far]
        if len(far) < len(readers):
            super().send([reader for reader in readers if reader not in self._far], key, tensor)
        if far:
            with out_of_inference_mode():
                self._far.send(far, key, tensor)

    def _put_aside(self, key: MessageKey, payload: Payload) -> None:
        """Called by the thread of a socket."""
        self._landed.append((key, payload))
        with self._changed:
            self._wake()

    def _look(self, timeout_s: float | None, key: MessageKey | None = None) -> None:
        if self._take_landed():
            timeout_s = 0.0
        super()._look(timeout_s, key)
        self._take_landed()

    def _take_landed(self) -> bool:
        """Deliver what was put aside; returns whether there was anything."""
        found = bool(self._landed)
        with self._reading:
            while self._landed and not self._closing:
                self._take_in_landed(*self._landed.popleft())
            if self._staging is not None:
                self._staging.make_landings()
        return found

    def _take_in_landed(self, key: MessageKey, payload: Payload) -> None:
        if key.table not in self._tables:  # any more
            payload.drop()
            return
        try:
            self._deliver_payload(key, payload)
        except (RuntimeError, MemoryError) as error:
            self.report(self._not_moved("receive", key, error))

    def close(self) -> None:
        self._end_waits()
        self._far.close()
        super().close()
        self._landed.clear()
        if self._staging is not None:
            self._staging.close()
