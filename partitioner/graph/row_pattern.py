"""RowPattern: which dimension of an operator's output each dimension of its operands becomes.

    linear(x, w, b)    x (0, 1, None)   w (2, None)   b (2,)      None: positions that are summed over or mixed
    softmax(x, dim=1)  x (0, None, 2)   and dimension 1 of the output differs from position to position

Rows are followed by it, through each operator that has a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from partitioner.graph.row_call import NodeCall, OperandSlot
from partitioner.graph.row_places import Extents


@dataclass(frozen=True)
class RowPattern:
    """Where operands' dimensions go in one output.

    Attributes:
        dims: of each operand that the output depends on, the output's dimension for each of its own, or None.
        varies: dimensions of the output along which it differs whatever the operands are.
        forms: whether of the other operands only shape or dtype counts.
    """

    dims: Mapping[OperandSlot, Sequence[int | None]]
    varies: frozenset[int] = frozenset()
    forms: bool = False


RowRule = Callable[[NodeCall], RowPattern | list[RowPattern]]


def aligned(shape: Extents, ndim: int) -> tuple[int, ...]:
    """Where the dimensions of an operand go that is broadcast to so many.

    >>> aligned((5, 8), 4)
    (2, 3)
    """
    return tuple(range(ndim - len(shape), ndim))


def all_but(mixed: Collection[int], ndim: int) -> list[int | None]:
    """Where the dimensions of an operand go that all stay where they are, but for some whose positions are mixed.

    >>> all_but({1}, 3)
    [0, None, 2]
    """
    return [None if dim in mixed else dim for dim in range(ndim)]
