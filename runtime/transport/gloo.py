"""GlooMailbox: messages between ranks that are processes, over gloo.

Per ordered pair of ranks there is one channel, on which every payload is preceded by a header
(runtime.transport.header); one thread per sender receives, and checks the header before the payload. Sends never wait
for the reader, so that the order of instructions alone decides whether ranks can wait for each other
(partitioner.plan.deadlock proves that they do not). What was sent is kept until its reader has said that it has it.

Gloo itself checks nothing: it fills buffers partially, reinterprets dtypes and aborts on what is too long. Nor can a
receive be taken back, and one that ran out of time breaks its whole group. So headers have a fixed length, all receives
wait without end, and deadlines are the supervisor's: a receive ends when its peer's process does. Gloo takes tensors of
CPUs only; those of GPUs go through the host's memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch

from partitioner.graph.torch_private import Store, gloo_group
from partitioner.process import await_threads
from runtime.errors import EngineError, MessageError, RankOutOfMemory, bytes_wanted
from runtime.transport.gloo_channel import GlooChannel
from runtime.transport.header import (
    DTYPES,
    HEADER_TAG,
    HEADER_WORDS,
    MAGIC,
    MOST_DIMS,
    PAYLOAD_TAG,
    RECEIPT,
    RECEIVED,
    dtype_name,
    header_words,
    shape_and_strides,
)
from runtime.transport.layout import as_bytes, dense, fills_memory, from_bytes
from runtime.transport.mailbox import Expected, Mailbox, MessageKey, PeerLost

_WITHOUT_END = timedelta(days=3650)  # None would mean the group's own, short, timeout
_GRACE_S = 2.0  # for a receive whose peer has ended


class GlooMailbox(Mailbox):
    """One rank's side of the transport between processes.

    Args:
        rank: this process's.
        world: how many ranks there are.
        store: where the ranks find each other.
        plan_hash: the first bits of the plan's hash; a message of another plan is refused.
        host: the address whose network interface is used.
        timeout_s: for connecting.
        announce_timeout_s: how long before its table is registered a message may arrive.
        on_error: called from a thread with an EngineError, or with PeerLost where a connection broke.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        store: Store,
        *,
        plan_hash: int,
        host: str,
        timeout_s: float,
        announce_timeout_s: float,
        on_error: Callable[[BaseException], None],
    ) -> None:
        super().__init__(rank)
        self._plan_hash = plan_hash
        self._announce_timeout_s = announce_timeout_s
        self._on_error = on_error
        self._group = gloo_group(store, rank, world, host=host, timeout=timedelta(seconds=timeout_s))
        self._channels = {peer: GlooChannel(self._group, peer) for peer in range(world) if peer != rank}
        self._newest: dict[tuple[int, ...], int] = {}  # table, wire, context, whether ahead -> step
        self._closing = False
        self._threads = [
            threading.Thread(target=self._receive_from, args=(peer,), name=f"rank {rank} from {peer}", daemon=True)
            for peer in self._channels
        ]
        for thread in self._threads:
            thread.start()

    def send(self, readers: Sequence[int], key: MessageKey, tensor: torch.Tensor) -> None:
        self._check_sent(key, tensor)
        tensor = dense(tensor)
        # bytes, so that one code path serves every dtype (gloo has no bfloat16 and no bool)
        payload = as_bytes(tensor).cpu()
        header = header_words(self._plan_hash, key, tensor)
        for reader in readers:
            self.sent_bytes += payload.numel()
            try:
                self._channels[reader].send(header, payload if payload.numel() else None)
            except RuntimeError as error:
                self._report(PeerLost(self.rank, reader, error))  # the next wait will raise
                return

    def unregister(self, tables: Sequence[int]) -> None:
        super().unregister(tables)
        for order in list(self._newest):
            if order[0] in tables:
                self._newest.pop(order, None)

    def _check_sent(self, key: MessageKey, tensor: torch.Tensor) -> None:
        """Raise MessageError where the tensor is not what its wire carries."""
        wire = self.expected(key)
        if tuple(tensor.shape) != wire.meta.shape or dtype_name(tensor) != wire.meta.dtype:
            raise MessageError(
                f"%{wire.value} should be {wire.meta}, but the component computed "
                f"{dtype_name(tensor)}{list(tensor.shape)}",
                rank=self.rank,
                step=key.step,
            )
        if tensor.dim() > MOST_DIMS:
            raise MessageError(
                f"%{wire.value} has {tensor.dim()} dimensions; at most {MOST_DIMS} can be sent",
                rank=self.rank,
                step=key.step,
            )

    def _receive_from(self, peer: int) -> None:
        header = torch.zeros(HEADER_WORDS, dtype=torch.int64)
        channel = self._channels[peer]
        try:
            while not self._closing:
                self._group.recv([header], peer, HEADER_TAG).wait(_WITHOUT_END)
                words = header.tolist()
                belongs = self._check_header(words, peer, channel.received)
                channel.let_go(words[RECEIVED])
                if belongs is None:
                    channel.arrived(None)
                    continue
                key, wire = belongs
                payload = self._room(key, wire)
                if payload.numel():
                    self._group.recv([payload], peer, PAYLOAD_TAG).wait(_WITHOUT_END)
                self.deliver(key, from_bytes(payload, getattr(torch, wire.meta.dtype), *shape_and_strides(words)))
                if channel.arrived(payload.numel()):
                    channel.send(header_words(self._plan_hash, RECEIPT), None)
        except EngineError as error:
            self._report(error)
        except BaseException as error:
            self._report(PeerLost(self.rank, peer, error))

    def _room(self, key: MessageKey, wire: Expected) -> torch.Tensor:
        try:
            return torch.empty(wire.meta.size_bytes, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            raise RankOutOfMemory(
                f"no memory to receive %{wire.value} ({wire.meta}): {error}",
                rank=self.rank,
                step=key.step,
                size_bytes=bytes_wanted(error) or wire.meta.size_bytes,
            ) from error

    def _check_header(self, words: list[int], peer: int, expected_sequence: int) -> tuple[MessageKey, Expected] | None:
        """What the header announces, None if it is a receipt; raises MessageError if it does not belong here."""
        magic, plan_hash, sequence, received, *key_words, dtype, size_bytes = words[:10]
        key = MessageKey(*key_words)

        def refuse(what: str) -> MessageError:
            return MessageError(f"a message from rank {peer} does not belong: {what}", rank=self.rank, step=key.step)

        if magic != MAGIC:
            raise refuse(f"its header starts with {magic:#x}, not {MAGIC:#x}")
        if plan_hash != self._plan_hash:
            raise refuse("it is of another plan")
        if sequence != expected_sequence:
            raise refuse(f"it is number {sequence}, expected {expected_sequence}")
        if not 0 <= received <= self._channels[peer].sent:
            raise refuse(f"it tells of {received} messages, {self._channels[peer].sent} were sent")
        if key == RECEIPT:
            return None
        with self._changed:  # the driver announces tables on another path: this one may come a moment later
            self._changed.wait_for(lambda: key.table in self._tables or self._closing, timeout=self._announce_timeout_s)
            wires = self._tables.get(key.table)
        if wires is None:
            raise refuse(f"its table {key.table} is unknown")
        if not 0 <= key.wire < len(wires):
            raise refuse(f"wire {key.wire} does not exist (table {key.table} has {len(wires)})")
        wire = wires[key.wire]
        if peer not in wire.senders:
            known = " or ".join(f"rank {sender}" for sender in wire.senders)
            raise refuse(f"%{wire.value} comes from {known or 'no other rank'}")
        name = DTYPES[dtype] if 0 <= dtype < len(DTYPES) else f"dtype {dtype}"
        shape, stride = shape_and_strides(words)
        if name != wire.meta.dtype or shape != wire.meta.shape or size_bytes != wire.meta.size_bytes:
            raise refuse(f"%{wire.value} should be {wire.meta}, it is {name}{list(shape)} in {size_bytes} bytes")
        if not fills_memory(shape, stride):
            raise refuse(f"%{wire.value} has the strides {list(stride)}, with which it does not fill its memory")
        ahead = self._ahead.get(key.context)
        order = (*key[:3], ahead is not None and key.step >= ahead)
        if key.step <= self._newest.get(order, key.step - 1):
            raise refuse(f"%{wire.value} of step {key.step} comes after that of step {self._newest[order]}")
        self._newest[order] = key.step
        return key, wire

    def _report(self, error: BaseException) -> None:
        if not self._closing:
            self._on_error(error)

    def close(self) -> None:
        """End it; the other ranks must have ended, since a receive ends only with its peer's connection."""
        self._closing = True
        self.fail(EngineError("the engine is closed"))
        with self._changed:
            self._changed.notify_all()
        await_threads(self._threads, _GRACE_S)
        for channel in self._channels.values():
            channel.close()
        self._arrived.clear()
        self._group = None
