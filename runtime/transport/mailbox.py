"""Mailbox: one rank's side of the transport; it keeps the messages that have arrived until they are taken.

Every message has a key (table, wire, context, step). Its sender says which ranks read it; its reader takes it by key,
so that which value is read never depends on timing.

    LocalMailbox         ranks that are threads of one process, or take turns in one thread
    StreamMailbox        threads of one process, some of them on GPUs
    SameMachineMailbox   processes that share memory
    SocketMailbox        processes that do not, as those on several machines
    MixedMailbox         processes of which some do
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from partitioner.graph.nodes import TensorMeta
from runtime.errors import MessageError

PARAMETER_CONTEXT = -1  # the context of messages that carry parameters


class MessageKey(NamedTuple):
    """Names one message.

    table: number of the graph, or of the list of parameters, that the tensor belongs to. wire: its index there.
    context: number of the cache context (and micro-batch). step: of the evaluation that made it.
    """

    table: int
    wire: int
    context: int
    step: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What a wire carries: the name of its value, for error messages; its meta; and which ranks may send it here."""

    value: str
    meta: TensorMeta
    senders: tuple[int, ...] = ()


class PeerLost(Exception):
    """The connection to ``peer`` broke: some rank has ended, and the driver's supervisor finds out which."""

    def __init__(self, rank: int, peer: int, cause: BaseException) -> None:
        super().__init__(f"rank {rank} lost its connection to rank {peer}: {cause}")
        self.peer = peer


class Mailbox(ABC):
    """One rank's side of the transport. Thread-safe.

    sent_bytes: of all tensors that it has sent, for each reader. wait_seconds: time spent in ``wait``. waiting_for: the
    message that a thread waits for now. copies_sent: whether a tensor that was sent may be written to once ``send`` has
    returned, in order on the stream that it was sent on.
    """

    copies_sent = False

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.sent_bytes = 0
        self.wait_seconds = 0.0
        self.waiting_for: MessageKey | None = None
        self._tables: dict[int, Sequence[Expected]] = {}
        self._newest_graph = -1  # of all tables so far that were of a graph, the highest number
        self._newest_list = 0  # and of a list of parameters, the lowest
        self._arrived: dict[MessageKey, torch.Tensor] = {}
        self._forgotten: dict[int, int] = {}  # context -> messages of earlier steps are dropped
        self._ahead: dict[int, int] = {}  # context -> messages of this step and later may overtake earlier ones
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._awaiting = 0  # threads that wait for it to change
        self._failure: BaseException | None = None

    @property
    def slot_bytes(self) -> int:
        """Of the memory that it has made for what it sends, which is shared with the readers."""
        return 0

    @abstractmethod
    def send(self, readers: Sequence[int], key: MessageKey, tensor: torch.Tensor) -> None:
        """Send a tensor to other ranks; returns at once.

        Args:
            readers: the ranks that will take it.
            key: of the message; its table is registered.
            tensor: of the shape and dtype of its wire. It must not be written to again, but see ``copies_sent``.
        """

    @abstractmethod
    def close(self) -> None:
        """End every thread and connection of this mailbox; messages that have not arrived are lost."""

    def register(self, table: int, wires: Sequence[Expected]) -> None:
        """Say what the messages of ``table`` are, by wire, before any of them is sent or taken."""
        with self._changed:
            self._tables[table] = wires
            self._newest_graph = max(self._newest_graph, table)
            self._newest_list = min(self._newest_list, table)
            self._changed.notify_all()

    def unregister(self, tables: Sequence[int]) -> None:
        """Forget what the messages of tables are, and those that nobody has taken.

        No more will be sent from here or taken, and what is under way is dropped when it comes.
        """
        with self._changed:
            for table in tables:
                self._tables.pop(table, None)
            for key in [key for key in self._arrived if key.table in tables]:
                del self._arrived[key]

    def is_unregistered(self, table: int) -> bool:
        """Whether a table was registered and is no more: their numbers go up, those of lists of parameters down."""
        return table not in self._tables and self._newest_list <= table <= self._newest_graph

    def expected(self, key: MessageKey) -> Expected:
        """What the message of ``key`` was said to be."""
        return self._tables[key.table][key.wire]

    @property
    def kept(self) -> int:
        """How many messages have arrived and have not been taken."""
        return len(self._arrived)

    def ready(self, key: MessageKey) -> bool:
        """Whether the message has arrived; raises the failure where the mailbox has failed."""
        if self._failure is not None:
            raise self._failure
        return key in self._arrived

    def wait(self, key: MessageKey, timeout_s: float | None = None) -> None:
        """Wait until the message has arrived.

        Raises:
            TimeoutError: it has not after ``timeout_s``.
            MessageError: a message of another step came on the same wire instead. Each wire has one sender, whose
                messages keep their order.
            BaseException: the mailbox's failure, see ``fail``.
        """
        start = time.perf_counter()
        self.waiting_for = key
        try:
            there = self._await(
                lambda: key in self._arrived or self._failure is not None or self._stray(key) is not None, timeout_s
            )
            with self._changed:
                self._raise_failure()
                stray = self._stray(key) if key not in self._arrived else None
                if there:
                    self.waiting_for = None  # otherwise it is kept, for reports of who waits for whom
        finally:
            self.wait_seconds += time.perf_counter() - start
        if stray is not None:
            raise MessageError(
                f"%{self.expected(key).value} of step {stray} came where that of step {key.step} belongs",
                rank=self.rank,
                step=key.step,
            )
        if not there:
            raise TimeoutError(f"no message {key} within {timeout_s} s")

    def _await(self, holds: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until something holds of this mailbox; returns whether it does."""
        with self._lock:
            self._awaiting += 1
            try:
                return self._changed.wait_for(holds, timeout=timeout_s)
            finally:
                self._awaiting -= 1

    def _stray(self, key: MessageKey) -> int | None:
        """The step of a message that can only have come in place of ``key``'s, or None."""
        ahead = self._ahead.get(key.context)
        for other in self._arrived:
            if other[:3] == key[:3] and other.step != key.step:
                overtakes = ahead is not None and key.step < ahead <= other.step
                if not overtakes:
                    return other.step
        return None

    def take(self, key: MessageKey) -> torch.Tensor:
        """Hand over an arrived message, a tensor of its own for each, and forget it."""
        with self._lock:
            return self._arrived.pop(key)

    def forget(self, context: int, before_step: int, ahead: int | None = None) -> None:
        """Drop what has arrived or will arrive in ``context`` of earlier steps: a new trajectory begins.

        Args:
            context: number of the cache context.
            before_step: the first step whose messages are kept.
            ahead: from now on messages of this step and later may overtake those of earlier ones (look-ahead).
        """
        with self._changed:
            self._forgotten[context] = before_step
            self._ahead.pop(context, None)
            if ahead is not None:
                self._ahead[context] = ahead
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

    def deliver(self, key: MessageKey, tensor: torch.Tensor) -> None:
        """Put in a message that has arrived; called by the code that received it."""
        with self._lock:
            if key.step >= self._forgotten.get(key.context, key.step) and not self.is_unregistered(key.table):
                self._arrived[key] = tensor
                if self._awaiting:
                    self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
