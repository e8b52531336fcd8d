"""SocketPeers: other ranks that a mailbox exchanges messages with over a stream socket each; SocketMailbox: only those.

Over several machines the sockets are TCP connections (runtime.transport.mesh). A message is its header
(runtime.transport.header), then the bytes of its tensor, from the tensor's memory into that of a new one. Those of GPUs
go through page-locked memory (runtime.transport.network_staging), or wait for the GPU. One thread per sender receives,
and checks the header before the payload. Sends never wait for the reader, so that the order of instructions alone
decides whether ranks can wait for each other (partitioner.plan.deadlock proves that they do not).

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
from runtime.transport.layout import Layout, as_bytes, dense, from_bytes
from runtime.transport.mailbox import PARAMETER_CONTEXT, MessageKey, PeerLost
from runtime.transport.memory import Slot
from runtime.transport.network_staging import Leaving, NetworkStaging
from runtime.transport.payload import Payload
from runtime.transport.socket_channel import SocketChannel
from runtime.turns import EngineThread

_GRACE_S = 2.0  # for a receive whose connection has ended


class SocketPeers:
    """The ranks at the other ends of some sockets.

    Args:
        mailbox: whose peers they are; it checks what is sent and what comes, and is told of errors.
        lines: other rank -> the connected socket to it; closed with this.
        deliver: takes messages, from a thread for each peer.
        staging: of this rank's GPU; None where it has none, or messages are to wait for it.
    """

    def __init__(
        self,
        mailbox: CheckedMailbox,
        lines: Mapping[int, socket.socket],
        deliver: Callable[[MessageKey, Payload], None],
        staging: NetworkStaging | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._deliver = deliver
        self._staging = staging
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
        leaving = self._leaving(key, tensor, len(readers))
        payload = _view(as_bytes(tensor.detach()).cpu()) if leaving is None else leaving.bytes
        for reader in readers:
            box.sent_bytes += tensor.nbytes
            try:
                self._channels[reader].send(box.plan_hash, key, described, payload, leaving)
            except OSError as error:
                box.report(PeerLost(box.rank, reader, error))  # the next wait will raise
                return

    def _leaving(self, key: MessageKey, tensor: torch.Tensor, readers: int) -> Leaving | None:
        staging = self._staging
        if staging is None or tensor.device != staging.device or key.context == PARAMETER_CONTEXT:
            return None
        return staging.write(tensor.detach(), readers) if tensor.nbytes else None

    def _receive_from(self, peer: int) -> None:
        channel, box = self._channels[peer], self._mailbox
        try:
            while True:
                header = channel.header()
                box.await_table(header, channel.received)
                announced = box.check_header(header, peer, channel.received)
                room, payload = self._room(header, announced)
                if room is not None:
                    channel.read(room)
                channel.received += 1
                if payload is not None:
                    self._deliver(header.key, payload)
        except EngineError as error:
            box.report(error)
        except BaseException as error:
            box.report(PeerLost(box.rank, peer, error))

    def _room(self, header: Header, announced: Announced | None) -> tuple[memoryview | None, Payload | None]:
        """Where a payload is to be put, and what it then is; None where it has no bytes, and where nobody wants it."""
        size_bytes = description_of(header.described).size_bytes if announced is None else announced.layout.size_bytes
        if self._staging is not None and announced is not None and header.key.context != PARAMETER_CONTEXT:
            landing = self._staging.landing(size_bytes)
            if landing is not None:
                return landing.bytes[:size_bytes], Payload(announced.layout, landing.slot, landing.give_back)
        try:
            room = torch.empty(size_bytes, dtype=torch.uint8)
            payload = None if announced is None else Payload(announced.layout, _OwnMemory(room), lambda: None)
            return _view(room), payload
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
        self._peers = SocketPeers(self, lines, lambda key, payload: self.deliver(key, payload.tensor()[0]))

    def send(self, readers: Sequence[int], key: MessageKey, tensor: torch.Tensor) -> None:
        self._peers.send(readers, key, tensor)

    def close(self) -> None:
        """End it."""
        self._end_waits()
        self._peers.close()
        self._arrived.clear()


class _OwnMemory(Slot):
    """A slot for one message, which stays in it. memory: its bytes."""

    def __init__(self, memory: torch.Tensor) -> None:
        self._memory = memory

    def write(self, tensor: torch.Tensor, layout: Layout) -> None:
        raise NotImplementedError("what comes over a socket is put there")

    def lend(self, layout: Layout, returned: Callable[[], None]) -> tuple[torch.Tensor, None]:
        return from_bytes(self._memory, layout), None


def _view(payload: torch.Tensor) -> memoryview | None:
    """The memory of bytes on a cpu; None where there are none."""
    return payload.numpy().data if payload.numel() else None
