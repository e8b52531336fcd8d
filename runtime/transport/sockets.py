"""SocketPeers: other ranks that a mailbox exchanges messages with over a stream socket each; SocketMailbox: only those.

Over several machines the sockets are TCP connections (runtime.transport.mesh). A message is its header
(runtime.transport.header), then the bytes of its tensor, from the tensor's memory into that of a new one; those of GPUs
go through the host's memory. One thread per sender receives, and checks the header before the payload. Sends never wait
for the reader, so that the order of instructions alone decides whether ranks can wait for each other
(partitioner.plan.deadlock proves that they do not).

All receives wait without end, and deadlines are the supervisor's: a receive ends when its peer's process does.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from partitioner.process import await_threads
from runtime.errors import EngineError, RankOutOfMemory, bytes_wanted
from runtime.transport.checked import Announced, CheckedMailbox
from runtime.transport.header import Header, describe, description_of
from runtime.transport.layout import as_bytes, dense, from_bytes
from runtime.transport.mailbox import MessageKey, PeerLost
from runtime.transport.socket_channel import SocketChannel
from runtime.turns import EngineThread

_GRACE_S = 2.0  # for a receive whose connection has ended


class SocketPeers:
    """The ranks at the other ends of some sockets.

    Args:
        mailbox: whose peers they are; it checks what is sent and what comes, and is told of errors.
        lines: other rank -> the connected socket to it; closed with this.
        deliver: takes messages, from a thread for each peer.
    """

    def __init__(
        self,
        mailbox: CheckedMailbox,
        lines: Mapping[int, socket.socket],
        deliver: Callable[[MessageKey, torch.Tensor], None],
    ) -> None:
        self._mailbox = mailbox
        self._deliver = deliver
        self._channels = {peer: SocketChannel(line, f"rank {mailbox.rank} to {peer}") for peer, line in lines.items()}
        self._threads = [
            EngineThread(partial(self._receive_from, peer), f"rank {mailbox.rank} from {peer}")
            for peer in self._channels
        ]
        for thread in self._threads:
            thread.start()

    def __contains__(self, rank: int) -> bool:
        return rank in self._channels

    def send(self, readers: Sequence[int], key: MessageKey, tensor: torch.Tensor) -> None:
        """Send a tensor to some of them, as Mailbox.send does."""
        box = self._mailbox
        box.check_sent(key, tensor)
        tensor = dense(tensor)
        described = describe(tensor)
        payload = _view(as_bytes(tensor.detach()).cpu())
        for reader in readers:
            box.sent_bytes += tensor.nbytes
            try:
                self._channels[reader].send(box.plan_hash, key, described, payload)
            except OSError as error:
                box.report(PeerLost(box.rank, reader, error))  # the next wait will raise
                return

    def _receive_from(self, peer: int) -> None:
        channel, box = self._channels[peer], self._mailbox
        try:
            while True:
                header = channel.header()
                box.await_table(header, channel.received)
                announced = box.check_header(header, peer, channel.received)
                payload = self._room(header, announced)
                room = _view(payload)
                if room is not None:
                    channel.read(room)
                channel.received += 1
                if announced is not None:
                    self._deliver(header.key, from_bytes(payload, announced.layout))
        except EngineError as error:
            box.report(error)
        except BaseException as error:
            box.report(PeerLost(box.rank, peer, error))

    def _room(self, header: Header, announced: Announced | None) -> torch.Tensor:
        size_bytes = description_of(header.described).size_bytes if announced is None else announced.layout.size_bytes
        try:
            return torch.empty(size_bytes, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            what = "what nobody reads any more"
            if announced is not None:
                what = f"%{announced.wire.value} ({announced.wire.meta})"
            raise RankOutOfMemory(
                f"no memory to receive {what}: {error}",
                rank=self._mailbox.rank,
                step=header.key.step,
                size_bytes=bytes_wanted(error) or size_bytes,
            ) from error

    def close(self) -> None:
        """End every connection and thread; the mailbox is about to close."""
        for channel in self._channels.values():
            channel.shut_down()
        await_threads(self._threads, _GRACE_S)
        for channel in self._channels.values():
            channel.close()


class SocketMailbox(CheckedMailbox):
    """One rank's side of the transport where all others are reached over sockets.

    Args:
        rank: this process's.
        lines: other rank -> the connected socket to it; closed with this.
        plan_hash: the first bits of the plan's hash; a message of another plan is refused.
        announce_timeout_s: how long before its table is registered a message may arrive.
        on_error: called from a thread with an EngineError, or with PeerLost where a connection broke.
    """

    def __init__(
        self,
        rank: int,
        lines: Mapping[int, socket.socket],
        *,
        plan_hash: int,
        announce_timeout_s: float,
        on_error: Callable[[BaseException], None],
    ) -> None:
        super().__init__(rank, plan_hash=plan_hash, announce_timeout_s=announce_timeout_s, on_error=on_error)
        self._peers = SocketPeers(self, lines, self.deliver)

    def send(self, readers: Sequence[int], key: MessageKey, tensor: torch.Tensor) -> None:
        self._peers.send(readers, key, tensor)

    def close(self) -> None:
        """End it."""
        self._end_waits()
        self._peers.close()
        self._arrived.clear()


def _view(payload: torch.Tensor) -> memoryview | None:
    """The memory of bytes on a cpu; None where there are none."""
    return payload.numpy().data if payload.numel() else None
