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
from runtime.errors import EngineError, RankOutOfMemory, bytes_wanted
from runtime.transport.checked import CheckedMailbox
from runtime.transport.gloo_channel import GlooChannel
from runtime.transport.header import (
    HEADER_TAG,
    HEADER_WORDS,
    PAYLOAD_TAG,
    RECEIPT,
    RECEIVED,
    header_words,
    shape_and_strides,
)
from runtime.transport.layout import as_bytes, dense, from_bytes
from runtime.transport.mailbox import Expected, MessageKey, PeerLost

_WITHOUT_END = timedelta(days=3650)  # None would mean the group's own, short, timeout
_GRACE_S = 2.0  # for a receive whose peer has ended


class GlooMailbox(CheckedMailbox):
    """One rank's side of the transport over gloo.

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
        super().__init__(rank, plan_hash=plan_hash, announce_timeout_s=announce_timeout_s, on_error=on_error)
        self._group = gloo_group(store, rank, world, host=host, timeout=timedelta(seconds=timeout_s))
        self._channels = {peer: GlooChannel(self._group, peer) for peer in range(world) if peer != rank}
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

    def _receive_from(self, peer: int) -> None:
        header = torch.zeros(HEADER_WORDS, dtype=torch.int64)
        channel = self._channels[peer]
        try:
            while not self._closing:
                self._group.recv([header], peer, HEADER_TAG).wait(_WITHOUT_END)
                words = header.tolist()
                self._await_table(words, channel.received)
                belongs = self._check_header(words, peer, channel.received)
                if not 0 <= words[RECEIVED] <= channel.sent:
                    tells = f"it tells of {words[RECEIVED]} messages, {channel.sent} were sent"
                    raise self._refusal(peer, MessageKey(*words[4:8]), tells)
                channel.let_go(words[RECEIVED])
                if belongs is None:
                    channel.arrived(None)
                    continue
                key, wire = belongs
                payload = self._room(key, wire, words[9])
                if payload.numel():
                    self._group.recv([payload], peer, PAYLOAD_TAG).wait(_WITHOUT_END)
                if wire is not None:
                    self.deliver(key, from_bytes(payload, getattr(torch, wire.meta.dtype), *shape_and_strides(words)))
                if channel.arrived(payload.numel()):
                    channel.send(header_words(self._plan_hash, RECEIPT), None)
        except EngineError as error:
            self._report(error)
        except BaseException as error:
            self._report(PeerLost(self.rank, peer, error))

    def _room(self, key: MessageKey, wire: Expected | None, size_bytes: int) -> torch.Tensor:
        try:
            return torch.empty(size_bytes, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            what = f"%{wire.value} ({wire.meta})" if wire is not None else "what nobody reads any more"
            raise RankOutOfMemory(
                f"no memory to receive {what}: {error}",
                rank=self.rank,
                step=key.step,
                size_bytes=bytes_wanted(error) or size_bytes,
            ) from error

    def _await_table(self, words: Sequence[int], expected_sequence: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: not self._is_early(words, expected_sequence) or self._closing, timeout=self._announce_timeout_s
            )

    def close(self) -> None:
        """End it; the other ranks must have ended, since a receive ends only with its peer's connection."""
        self._end_waits()
        with self._changed:
            self._changed.notify_all()
        await_threads(self._threads, _GRACE_S)
        for channel in self._channels.values():
            channel.close()
        self._arrived.clear()
        self._group = None
