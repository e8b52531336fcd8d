"""Micro-batches: the rows of an exact call in parts, so that components work at the same time.

In an exact call each component needs what the one before has just computed. With the rows in two parts, a and b, one
component computes part b while the next has part a:

    whole batch                       two parts
    time           1    2    3       time           1    2    3    4     (half as long each)
    component 0    ab                component 0    a    b
    component 1         ab           component 1         a    b
    component 2              ab      component 2              a    b

    a fold, where component 1 has the pieces 1 and 3 of the chain and component 0 the piece 2:

    time           1    2    3    4
    component 1    a1   b1   a3   b3
    component 0         a2   b2

The rows of a denoiser's batch are samples that it computes apart from each other, so this is exact up to the last bits:
matrix products of other shapes may sum in another order. Every part is an evaluation of its own, of the graph that was
traced at its shape, in a cache context of its own. Where a later, lagged evaluation will read a boundary tensor of this
call, the reader joins the parts that it receives (PartsOfMessages).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.transport.layout import joined
from runtime.transport.mailbox import Mailbox, MessageKey
from runtime.worker.commands import Join
from runtime.worker.specs import Wire


def joined_dim(whole: Sequence[int], part: Sequence[int], parts: int) -> int | None:
    """The dimension that is ``parts`` times as long in ``whole``, all others being equal; None if there is no such.

    >>> joined_dim((4, 77, 768), (2, 77, 768), parts=2)
    0
    """
    if len(whole) != len(part):
        return None
    other = [dim for dim, (a, b) in enumerate(zip(whole, part, strict=True)) if a != b]
    return other[0] if len(other) == 1 and whole[other[0]] == parts * part[other[0]] else None


def can_join(whole: Sequence[Wire], part: Sequence[Wire], parts: int) -> bool:
    """Whether the parts of every boundary tensor can be joined to the whole batch's.

    Args:
        whole: the wires of the graph of the whole batch.
        part: those of the graph of one micro-batch.
        parts: how many micro-batches there are.
    """
    return [wire.value for wire in whole] == [wire.value for wire in part] and all(
        joined_dim(one.meta.shape, other.meta.shape, parts) is not None
        for one, other in zip(whole, part, strict=True)
        if one.source is not None
    )


def join(tensors: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """The parts of a tensor, in order, as one tensor of that shape; ``can_join`` has held."""
    dim = joined_dim(shape, tensors[0].shape, len(tensors))
    assert dim is not None, "only what can be joined is run in parts"
    return joined(tensors, dim)


class PartsOfMessages:
    """Joins the parts of boundary tensors that a rank receives in micro-batches to messages of the whole batch."""

    def __init__(self) -> None:
        self._parts: dict[MessageKey, dict[int, torch.Tensor]] = {}  # message of the whole batch -> its parts so far

    def take(self, to: Join, key: MessageKey, tensor: torch.Tensor, mailbox: Mailbox) -> None:
        """Keep one part; with the last one the message of the whole batch is put into the mailbox, as if it was sent.

        Args:
            to: which part of which whole batch.
            key: of the message that brought the part.
            tensor: the part.
            mailbox: of the rank that received it.
        """
        whole = MessageKey(to.table, key.wire, to.context, key.step)
        parts = self._parts.setdefault(whole, {})
        parts[to.part] = tensor
        if len(parts) == to.parts:
            del self._parts[whole]
            shape = mailbox.expected(whole).meta.shape
            mailbox.deliver(whole, join([parts[part] for part in range(to.parts)], shape))
