"""How tensors travel between ranks: the only file that touches torch.distributed or CUDA streams.

Every message has a key (table, wire, context, step). Its sender says who reads it; its reader takes it by key,
so that which value is read never depends on timing. A mailbox keeps a rank's arrived messages.

LocalMailbox serves ranks that are threads of one process, or are emulated in turn. GlooMailbox serves
processes: per ordered pair of ranks one channel, on which every payload is preceded by a header that is checked
before the payload is received, by one thread per sender. Sends never wait for the reader, so that the order of
instructions alone decides whether ranks can wait for each other (program.py proves that they do not).
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from partitioner.ir import TensorMeta
from runtime.errors import EngineError, MessageError
from runtime.torch_private import gloo_group, open_store


class Key(NamedTuple):
    """Names one message. table: which graph or parameter list; wire: its index there."""

    table: int
    wire: int
    context: int
    step: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What a wire carries: its value's name (for messages to people) and its meta."""

    value: str
    meta: TensorMeta


class Mailbox(ABC):
    """One rank's side of the transport. Thread-safe."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.sent_bytes = 0
        self.send_seconds = 0.0  # in the sending thread: packing and handing over
        self.wait_seconds = 0.0
        self._arrived: dict[Key, torch.Tensor] = {}
        self._forgotten: dict[int, int] = {}  # context -> messages of earlier steps are dropped
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self.waiting_for: Key | None = None

    @abstractmethod
    def register(self, table: int, wires: Sequence[Expected]) -> None:
        """Say what the messages of ``table`` are, before any of them is sent or taken."""

    def send(self, readers: Sequence[int], key: Key, tensor: torch.Tensor) -> None:
        """Send to each of the ranks ``readers``; returns at once. The tensor must not be written to again."""
        start = time.perf_counter()
        self._send(readers, key, tensor)
        self.send_seconds += time.perf_counter() - start

    @abstractmethod
    def _send(self, readers: Sequence[int], key: Key, tensor: torch.Tensor) -> None:
        """``send``, as this transport does it."""

    @abstractmethod
    def close(self) -> None:
        """End every thread and connection of this mailbox; what is still under way is lost."""

    def ready(self, key: Key) -> bool:
        """Whether the message has arrived; raises the failure where the mailbox has failed."""
        with self._changed:
            self._raise_failure()
            return key in self._arrived

    def wait(self, key: Key, timeout_s: float | None = None) -> None:
        """Wait until the message is there. TimeoutError after ``timeout_s``; raises the mailbox's failure."""
        start = time.perf_counter()
        self.waiting_for = key
        try:
            with self._changed:
                there = self._changed.wait_for(
                    lambda: key in self._arrived or self._failure is not None, timeout=timeout_s
                )
                self._raise_failure()
        finally:
            self.waiting_for = None
            self.wait_seconds += time.perf_counter() - start
        if not there:
            raise TimeoutError(f"no message {key} within {timeout_s} s")

    def take(self, key: Key) -> torch.Tensor:
        """Hand over an arrived message and forget it."""
        with self._changed:
            return self._arrived.pop(key)

    def forget(self, context: int, before_step: int) -> None:
        """Drop what arrived or will arrive in ``context`` of steps before ``before_step``."""
        with self._changed:
            self._forgotten[context] = before_step
            stale = [key for key in self._arrived if key.context == context and key.step < before_step]
            for key in stale:
                del self._arrived[key]

    def fail(self, error: BaseException) -> None:
        """Make everyone who waits here, now or later, raise ``error``; the first failure wins."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    @property
    def failure(self) -> BaseException | None:
        return self._failure

    def deliver(self, key: Key, tensor: torch.Tensor) -> None:
        """Put an arrived message in; called by whoever received it."""
        with self._changed:
            if key.step >= self._forgotten.get(key.context, key.step):
                self._arrived[key] = tensor
                self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            if isinstance(self._failure, EngineError):
                raise self._failure
            raise EngineError(f"rank {self.rank}: the transport failed: {self._failure}") from self._failure


class LocalMailbox(Mailbox):
    """Ranks of one process: a send puts the tensor itself into the reader's mailbox (no copy on one device)."""

    def __init__(self, rank: int, peers: list[LocalMailbox], device: torch.device) -> None:
        super().__init__(rank)
        self._peers = peers
        self._device = device

    def register(self, table: int, wires: Sequence[Expected]) -> None:
        pass  # the tensor itself is handed over: there is nothing to agree on

    def _send(self, readers: Sequence[int], key: Key, tensor: torch.Tensor) -> None:
        packed = pack(tensor)
        for reader in readers:
            self.sent_bytes += packed.numel() * packed.element_size()
            peer = self._peers[reader]
            peer.deliver(key, unpack(packed, tensor).to(peer._device))

    def close(self) -> None:
        self.fail(EngineError("the engine is closed"))
        with self._changed:
            self._arrived.clear()


_HEADER_WORDS = 9
_MAGIC = 0x44495046  # "DIPF"
_DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip
_HEADER_TAG, _PAYLOAD_TAG = 1, 2


class GlooMailbox(Mailbox):
    """Ranks in processes, over gloo.

    store_address: (host, port) of the rendezvous store. plan_hash: the first 64 bits of the plan's hash; a message
    of another plan is refused. on_error: called with a MessageError or the library's own error, from a thread.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        store_address: tuple[str, int],
        *,
        plan_hash: int,
        host: str = "127.0.0.1",
        timeout_s: float = 60.0,
        on_error: Callable[[BaseException], None] | None = None,
        store: Any = None,
    ) -> None:
        super().__init__(rank)
        self._world = world
        self._plan_hash = plan_hash
        self._on_error = on_error
        self._store = store or open_store(store_address, timeout=timedelta(seconds=timeout_s))
        self._group = gloo_group(self._store, rank, world, host=host, timeout=timedelta(seconds=timeout_s))
        self._tables: dict[int, Sequence[Expected]] = {}
        self._sequence = [0] * world
        self._closing = False
        self._unsent: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._reap, name=f"rank {rank} sends", daemon=True)]
        self._threads += [
            threading.Thread(target=self._receive_from, args=(peer,), name=f"rank {rank} from {peer}", daemon=True)
            for peer in range(world)
            if peer != rank
        ]
        for thread in self._threads:
            thread.start()

    def register(self, table: int, wires: Sequence[Expected]) -> None:
        with self._changed:
            self._tables[table] = wires
            self._changed.notify_all()

    def _send(self, readers: Sequence[int], key: Key, tensor: torch.Tensor) -> None:
        self.check_wire(key, tensor)
        packed = pack(tensor)
        # bytes, so that one code path serves every dtype (gloo has no bfloat16 and no bool)
        payload = packed.reshape(-1).view(torch.uint8)
        for reader in readers:
            header = torch.tensor(
                [_MAGIC, self._plan_hash, *key, _DTYPES.index(_dtype_name(tensor)), payload.numel(),
                 self._sequence[reader]]
            )  # fmt: skip
            self._sequence[reader] += 1
            self.sent_bytes += payload.numel()
            try:
                works = (
                    self._group.send([header], reader, _HEADER_TAG),
                    self._group.send([payload], reader, _PAYLOAD_TAG),
                )
            except RuntimeError as error:
                self._report(reader, error)
                self._raise_failure()
                raise
            self._unsent.put((works, header, payload, reader))

    def check_wire(self, key: Key, tensor: torch.Tensor) -> None:
        """MessageError where the tensor is not what the wire was said to carry."""
        wire = self._tables[key.table][key.wire]
        if tuple(tensor.shape) != wire.meta.shape or _dtype_name(tensor) != wire.meta.dtype:
            raise MessageError(
                f"%{wire.value} should be {wire.meta}, but the component computed "
                f"{_dtype_name(tensor)}{list(tensor.shape)}",
                rank=self.rank,
                step=key.step,
            )

    def _reap(self) -> None:
        """Hold what is being sent until it is gone, in order."""
        while (item := self._unsent.get()) is not None:
            works, _header, _payload, reader = item
            try:
                for work in works:
                    work.wait()
            except RuntimeError as error:
                self._report(reader, error)
                return

    def _receive_from(self, peer: int) -> None:
        header = torch.zeros(_HEADER_WORDS, dtype=torch.int64)
        expected_sequence = 0
        try:
            while not self._closing:
                self._group.recv([header], peer, _HEADER_TAG).wait()
                words: list[int] = header.tolist()
                key, wire = self._check_header(words, peer, expected_sequence)
                expected_sequence += 1
                payload = torch.empty(words[-2], dtype=torch.uint8)
                if payload.numel():
                    self._group.recv([payload], peer, _PAYLOAD_TAG).wait()
                self.deliver(key, _restore(payload, wire.meta))
        except BaseException as error:
            self._report(peer, error)

    def _check_header(self, words: list[int], peer: int, expected_sequence: int) -> tuple[Key, Expected]:
        magic, plan_hash, *key_words, dtype, size_bytes, sequence = words
        key = Key(*key_words)

        def refuse(what: str) -> MessageError:
            return MessageError(f"a message from rank {peer} does not belong: {what}", rank=self.rank, step=key.step)

        if magic != _MAGIC:
            raise refuse(f"its header starts with {magic:#x}, not {_MAGIC:#x}")
        if plan_hash != self._plan_hash:
            raise refuse("it is of another plan")
        if sequence != expected_sequence:
            raise refuse(f"it is number {sequence}, expected {expected_sequence}")
        with self._changed:  # the table is announced on another path, and may come a moment later
            known = self._changed.wait_for(lambda: key.table in self._tables or self._closing, timeout=60)
        if not known or self._closing:
            raise refuse(f"its table {key.table} is unknown")
        wires = self._tables[key.table]
        if not 0 <= key.wire < len(wires):
            raise refuse(f"wire {key.wire} does not exist (table {key.table} has {len(wires)})")
        wire = wires[key.wire]
        name = _DTYPES[dtype] if 0 <= dtype < len(_DTYPES) else f"code {dtype}"
        if name != wire.meta.dtype or size_bytes != wire.meta.size_bytes:
            raise refuse(f"%{wire.value} should be {wire.meta}, it has {size_bytes} bytes of {name}")
        return key, wire

    def _report(self, peer: int, error: BaseException) -> None:
        if self._closing:
            return
        if not isinstance(error, MessageError):
            error = ConnectionError(f"connection between rank {self.rank} and rank {peer} broke: {error}")
        if self._on_error is not None:
            self._on_error(error)
        else:
            self.fail(error)

    def close(self) -> None:
        """Call it when the other ranks have ended: a receive ends only when its peer's connection does."""
        self._closing = True
        self.fail(EngineError("the engine is closed"))
        self._unsent.put(None)
        for thread in self._threads:
            thread.join(timeout=2)
        self._arrived.clear()
        self._group = self._store = None


def pack(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements as a contiguous tensor, in memory order where that needs no copy."""
    order = _memory_order(tensor)
    return tensor.contiguous() if order is None else tensor.permute(order)


def unpack(packed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Undo ``pack``: a tensor with like's shape; with its strides too, where pack did not copy."""
    order = _memory_order(like)
    return packed if order is None else packed.permute(_inverse(order))


def _memory_order(tensor: torch.Tensor) -> list[int] | None:
    """Dimensions by falling stride, if the tensor fills its memory without gaps in that order; else None."""
    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride(d), d))
    return order if tensor.permute(order).is_contiguous() else None


def _inverse(order: Sequence[int]) -> list[int]:
    inverse = [0] * len(order)
    for position, dim in enumerate(order):
        inverse[dim] = position
    return inverse


def _restore(payload: torch.Tensor, meta: TensorMeta) -> torch.Tensor:
    """Bytes -> a tensor of ``meta``; strides are those of the trace where they leave no gaps."""
    flat = payload.view(getattr(torch, meta.dtype))
    order = sorted(range(len(meta.shape)), key=lambda d: (-meta.stride[d], d))
    permuted = flat.view([meta.shape[d] for d in order]).permute(_inverse(order))
    contiguous = flat.view(meta.shape)
    return permuted if permuted.stride() == meta.stride else contiguous


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
