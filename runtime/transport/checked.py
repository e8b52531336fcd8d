"""CheckedMailbox: what mailboxes between processes have in common: every message is checked by its header."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from partitioner.graph.tensor_meta import name_of_dtype
from runtime.errors import EngineError, MessageError
from runtime.transport.header import MAGIC, MOST_DIMS, Header, description_of
from runtime.transport.layout import Layout, fills_memory
from runtime.transport.mailbox import Expected, Mailbox, MessageKey


class Announced(NamedTuple):
    """What a header announces, once it was found right. described: see Header; wire: whose message; layout: of it."""

    described: bytes
    wire: Expected
    layout: Layout


class CheckedMailbox(Mailbox):
    """One rank's side of a transport between processes. Its threads use what has no underscore.

    Args:
        rank: this process's.
        plan_hash: the first bits of the plan's hash; a message of another plan is refused.
        announce_timeout_s: how long before its table is registered a message may arrive.
        on_error: called with an EngineError, or with PeerLost where a connection broke; from any thread.
    """

    def __init__(
        self, rank: int, *, plan_hash: int, announce_timeout_s: float, on_error: Callable[[BaseException], None]
    ) -> None:
        super().__init__(rank)
        self.plan_hash = plan_hash
        self._announce_timeout_s = announce_timeout_s
        self._on_error = on_error
        self._newest: dict[tuple[int, ...], int] = {}  # table, wire, context, whether ahead -> step
        self._known: dict[tuple[int, int, int], Announced] = {}  # peer, table, wire -> by the last header
        self._longest = 0  # bytes of a message of any table so far
        self._closing = False

    def register(self, table: int, wires: Sequence[Expected]) -> None:
        self._forget_known([table])
        self._longest = max(self._longest, *(wire.meta.size_bytes for wire in wires), 0)
        super().register(table, wires)

    def unregister(self, tables: Sequence[int]) -> None:
        super().unregister(tables)
        for order in list(self._newest):
            if order[0] in tables:
                self._newest.pop(order, None)
        self._forget_known(tables)

    def _forget_known(self, tables: Sequence[int]) -> None:
        """What was found right of messages of tables may be wrong from now on."""
        # of a list, since threads may add to the dict meanwhile
        self._known = {known: said for known, said in list(self._known.items()) if known[1] not in tables}

    def check_sent(self, key: MessageKey, tensor: torch.Tensor) -> None:
        """Raise MessageError where the tensor is not what its wire carries."""
        wire = self.expected(key)
        if tuple(tensor.shape) != wire.meta.shape or name_of_dtype(tensor) != wire.meta.dtype:
            raise MessageError(
                f"%{wire.value} should be {wire.meta}, but the component computed "
                f"{name_of_dtype(tensor)}{list(tensor.shape)}",
                rank=self.rank,
                step=key.step,
            )
        if tensor.dim() > MOST_DIMS:
            raise MessageError(
                f"%{wire.value} has {tensor.dim()} dimensions; at most {MOST_DIMS} can be sent",
                rank=self.rank,
                step=key.step,
            )

    def is_early(self, header: Header, expected_sequence: int) -> bool:
        """Whether a header is of a table that is not registered yet: the driver announces tables on another path."""
        table = header.key.table
        if table in self._tables or self.is_unregistered(table):
            return False
        return header[:3] == (MAGIC, self.plan_hash, expected_sequence)

    def await_table(self, header: Header, expected_sequence: int) -> None:
        """Wait until the table of a message that came early is registered, for as long as that may take."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self.is_early(header, expected_sequence) or self._closing, timeout=self._announce_timeout_s
            )

    def check_header(self, header: Header, peer: int, expected_sequence: int) -> Announced | None:
        """What a header announces; raises MessageError if it does not belong here.

        None where its table is registered no more: the message is to be dropped.
        """
        key = header.key
        if header[:3] != (MAGIC, self.plan_hash, expected_sequence):
            raise self._refusal(peer, key, self._stranger(header, expected_sequence))
        announced = self._known.get((peer, key.table, key.wire))
        if announced is None or announced.described != header.described or key.table not in self._tables:
            announced = self._announced(header, peer)
            if announced is None:
                return None
            self._known[peer, key.table, key.wire] = announced
        ahead = self._ahead.get(key.context)
        order = key.table, key.wire, key.context, ahead is not None and key.step >= ahead
        if key.step <= self._newest.get(order, key.step - 1):
            text = f"%{announced.wire.value} of step {key.step} comes after that of step {self._newest[order]}"
            raise self._refusal(peer, key, text)
        self._newest[order] = key.step
        return announced

    def _stranger(self, header: Header, expected_sequence: int) -> str:
        """In what a header differs from all that this rank could receive now from another."""
        if header.magic != MAGIC:
            return f"its header starts with {header.magic:#x}, not {MAGIC:#x}"
        if header.plan_hash != self.plan_hash:
            return "it is of another plan"
        return f"it is number {header.sequence}, expected {expected_sequence}"

    def _announced(self, header: Header, peer: int) -> Announced | None:
        """What a header announces whose like was not seen before, as ``check_header``."""
        key = header.key
        wires = self._tables.get(key.table)
        dtype, size_bytes, shape, stride = description_of(header.described)

        def refuse(what: str) -> MessageError:
            return self._refusal(peer, key, what)

        if wires is None and self.is_unregistered(key.table):
            if not 0 <= size_bytes <= self._longest:
                raise refuse(f"its table {key.table} is forgotten, and no message ever had {size_bytes} bytes")
            return None
        if wires is None:
            raise refuse(f"its table {key.table} is unknown")
        if not 0 <= key.wire < len(wires):
            raise refuse(f"wire {key.wire} does not exist (table {key.table} has {len(wires)})")
        wire = wires[key.wire]
        if peer not in wire.senders:
            known = " or ".join(f"rank {sender}" for sender in wire.senders)
            raise refuse(f"%{wire.value} comes from {known or 'no other rank'}")
        if dtype != wire.meta.dtype or shape != wire.meta.shape or size_bytes != wire.meta.size_bytes:
            raise refuse(f"%{wire.value} should be {wire.meta}, it is {dtype}{list(shape)} in {size_bytes} bytes")
        if not fills_memory(shape, stride):
            raise refuse(f"%{wire.value} has the strides {list(stride)}, with which it does not fill its memory")
        return Announced(header.described, wire, Layout(getattr(torch, dtype), shape, stride, size_bytes))

    def _refusal(self, peer: int, key: MessageKey, what: str) -> MessageError:
        return MessageError(f"a message from rank {peer} does not belong: {what}", rank=self.rank, step=key.step)

    def report(self, error: BaseException) -> None:
        """Say that messages of some peer have failed, unless this is at its end."""
        if not self._closing:
            self._on_error(error)

    def _end_waits(self) -> None:
        """Have everyone who waits here raise that the engine is closed."""
        self._closing = True
        self.fail(EngineError("the engine is closed"))
