"""How tensors travel between ranks: the only file that touches torch.distributed or CUDA streams.

Every message has a key (table, wire, context, step). Its sender says who reads it; its reader takes it by key,
so that which value is read never depends on timing. A mailbox keeps a rank's arrived messages.

LocalMailbox serves ranks that are threads of one process, or are emulated in turn. GlooMailbox serves
processes: per ordered pair of ranks one channel, on which every payload is preceded by a header that is checked
before the payload is received, by one thread per sender. Sends never wait for the reader, so that the order of
instructions alone decides whether ranks can wait for each other (program.py proves that they do not). What was
sent is kept until its reader says that it has it.

Gloo itself checks nothing: it fills buffers partially, reinterprets dtypes and aborts on what is too long. Nor can
a receive be taken back, and one that ran out of time breaks its whole group. So headers have a fixed length, all
receives wait without end, and deadlines are the supervisor's: a receive ends when its peer's process does. It takes
tensors of CPUs only, so that those of GPUs go through the host's memory; between threads
runtime.transport.stream_mailbox copies.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch

from partitioner.graph.torch_private import Store, gloo_group
from runtime.errors import EngineError, MessageError, RankOutOfMemory, bytes_wanted
from runtime.transport.layout import as_bytes, pack, unpack
from runtime.transport.mailbox import Expected, Mailbox, MessageKey, PeerLost

_MOST_DIMS = 12
_HEADER_WORDS = 11 + _MOST_DIMS
_MAGIC = 0x44495046  # "DIPF"
_DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip
_SEQUENCE, _RECEIVED = 2, 3  # words of a header
_HEADER_TAG, _PAYLOAD_TAG = 1, 2
_WITHOUT_END = timedelta(days=3650)  # in words, because none given means the group's own, short, timeout
RECEIPT = MessageKey(0, -1, 0, 0)  # of a header that only says what has arrived
_UNSAID_MESSAGES, _UNSAID_BYTES = 16, 2**20  # what may have arrived before it is said without being asked


class _Channel:
    """What goes to one peer: numbered, and kept until the peer's headers say that it has arrived.

    It cannot be asked of gloo, which never ends the wait for a send whose bytes it was writing when the connection
    broke. A header says how many of its reader's messages its sender has; where no message is to be sent, a receipt,
    a header alone, says it after 16 messages or 1 MiB. Receipts answer messages only, never each other.
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
        """Send ``header``, its words of sequence and received put in here, and ``payload``, None where that is empty.

        Raises RuntimeError where the connection is known to be broken.
        """
        with self._lock:
            header[_SEQUENCE], header[_RECEIVED] = self.sent, self.received
            self.sent += 1  # first, because the answer may be there before this returns
            self._unsaid_messages = self._unsaid_bytes = 0
            words = torch.tensor(header)
            works = [self._group.send([words], self._peer, _HEADER_TAG)]
            if payload is not None:
                works.append(self._group.send([payload], self._peer, _PAYLOAD_TAG))
            self._kept.append((works, words, payload))

    def arrived(self, size_bytes: int | None) -> bool:
        """Count what has arrived: a message's bytes, or None for a receipt. Whether a receipt should be sent now."""
        with self._lock:
            self.received += 1
            if size_bytes is None:
                return False
            self._unsaid_messages += 1
            self._unsaid_bytes += size_bytes
            return self._unsaid_messages >= _UNSAID_MESSAGES or self._unsaid_bytes >= _UNSAID_BYTES

    @property
    def kept(self) -> int:
        """How many messages and receipts have been sent and are not known to have arrived."""
        return len(self._kept)

    def let_go(self, received: int) -> None:
        """Forget what the peer has: all but the ``sent - received`` last."""
        with self._lock:
            while len(self._kept) > self.sent - received:
                self._kept.popleft()

    def close(self) -> None:
        """Forget everything, the group included."""
        with self._lock:
            self._kept.clear()
            self._group = None


class GlooMailbox(Mailbox):
    """Ranks in processes, over gloo.

    store: where the ranks find each other. plan_hash: the first bits of the plan's hash; a message of another plan
    is refused. host: the address whose interface is used. timeout_s: for connecting. announce_timeout_s: how long
    a message may come before its table is registered. on_error: called from a thread with an EngineError, or with
    PeerLost where a connection broke.
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
        self._channels = {peer: _Channel(self._group, peer) for peer in range(world) if peer != rank}
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
        # bytes, so that one code path serves every dtype (gloo has no bfloat16 and no bool)
        payload = as_bytes(pack(tensor, self.expected(key).meta)).cpu()
        header = self._header(key, _DTYPES.index(_dtype_name(tensor)), tensor.nbytes, tuple(tensor.shape))
        for reader in readers:
            self.sent_bytes += payload.numel()
            try:
                self._channels[reader].send(header, payload if payload.numel() else None)
            except RuntimeError as error:
                self._report(PeerLost(self.rank, reader, error))  # whoever waits next will be told
                return

    def _header(self, key: MessageKey, dtype: int = 0, size_bytes: int = 0, shape: tuple[int, ...] = ()) -> list[int]:
        padding = [0] * (_MOST_DIMS - len(shape))
        return [_MAGIC, self._plan_hash, 0, 0, *key, dtype, size_bytes, len(shape), *shape, *padding]

    def _check_sent(self, key: MessageKey, tensor: torch.Tensor) -> None:
        """MessageError where the tensor is not what the wire was said to carry."""
        wire = self.expected(key)
        if tuple(tensor.shape) != wire.meta.shape or _dtype_name(tensor) != wire.meta.dtype:
            raise MessageError(
                f"%{wire.value} should be {wire.meta}, but the component computed "
                f"{_dtype_name(tensor)}{list(tensor.shape)}",
                rank=self.rank,
                step=key.step,
            )
        if tensor.dim() > _MOST_DIMS:
            raise MessageError(
                f"%{wire.value} has {tensor.dim()} dimensions; at most {_MOST_DIMS} can be sent",
                rank=self.rank,
                step=key.step,
            )

    def _receive_from(self, peer: int) -> None:
        header = torch.zeros(_HEADER_WORDS, dtype=torch.int64)
        channel = self._channels[peer]
        try:
            while not self._closing:
                self._group.recv([header], peer, _HEADER_TAG).wait(_WITHOUT_END)
                words = header.tolist()
                belongs = self._check_header(words, peer, channel.received)
                channel.let_go(words[_RECEIVED])
                if belongs is None:
                    channel.arrived(None)
                    continue
                key, wire = belongs
                payload = self._room(key, wire)
                if payload.numel():
                    self._group.recv([payload], peer, _PAYLOAD_TAG).wait(_WITHOUT_END)
                self.deliver(key, unpack(payload.view(getattr(torch, wire.meta.dtype)), wire.meta))
                if channel.arrived(payload.numel()):
                    channel.send(self._header(RECEIPT), None)
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
        """What the header announces, None where it is a receipt; raises MessageError where it does not belong."""
        magic, plan_hash, sequence, received, *key_words, dtype, size_bytes, dims = words[:11]
        key = MessageKey(*key_words)

        def refuse(what: str) -> MessageError:
            return MessageError(f"a message from rank {peer} does not belong: {what}", rank=self.rank, step=key.step)

        if magic != _MAGIC:
            raise refuse(f"its header starts with {magic:#x}, not {_MAGIC:#x}")
        if plan_hash != self._plan_hash:
            raise refuse("it is of another plan")
        if sequence != expected_sequence:
            raise refuse(f"it is number {sequence}, expected {expected_sequence}")
        if not 0 <= received <= self._channels[peer].sent:
            raise refuse(f"it tells of {received} messages, {self._channels[peer].sent} were sent")
        if key == RECEIPT:
            return None
        with self._changed:  # the table is announced on another path, and may come a moment later
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
        name = _DTYPES[dtype] if 0 <= dtype < len(_DTYPES) else f"dtype {dtype}"
        shape = words[11 : 11 + dims] if 0 <= dims <= _MOST_DIMS else [dims]
        if name != wire.meta.dtype or tuple(shape) != wire.meta.shape or size_bytes != wire.meta.size_bytes:
            raise refuse(f"%{wire.value} should be {wire.meta}, it is {name}{shape} in {size_bytes} bytes")
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
        """Call it when the other ranks have ended: a receive ends only when its peer's connection does."""
        self._closing = True
        self.fail(EngineError("the engine is closed"))
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=2)
        for channel in self._channels.values():
            channel.close()
        self._arrived.clear()
        self._group = None


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
