"""MixedMailbox: messages between ranks that are processes, some on this machine and some on others.

Those of this machine go through shared memory, the others over sockets (runtime.transport.sockets), whose threads wake
the one that waits for all of them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence

import torch

from runtime.transport.mailbox import MessageKey
from runtime.transport.same_machine import SameMachineMailbox
from runtime.transport.sockets import SocketPeers


class MixedMailbox(SameMachineMailbox):
    """One rank's side of the transport where only some of the others are on its machine.

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
        self._far = SocketPeers(self, far_lines, self._deliver_far)

    def send(self, readers: Sequence[int], key: MessageKey, tensor: torch.Tensor) -> None:
        far = [reader for reader in readers if reader in self._far]
        if len(far) < len(readers):
            super().send([reader for reader in readers if reader not in self._far], key, tensor)
        if far:
            self._far.send(far, key, tensor)

    def _deliver_far(self, key: MessageKey, tensor: torch.Tensor) -> None:
        with self._changed:
            self.deliver(key, tensor)
            self._wake()

    def _await(self, holds: Callable[[], bool], timeout_s: float | None) -> bool:
        def holds_now() -> bool:
            with self._lock:  # threads of far ranks deliver
                return holds()

        return super()._await(holds_now, timeout_s)

    def close(self) -> None:
        self._end_waits()
        self._far.close()
        super().close()
