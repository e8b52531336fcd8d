"""The patterns of operators to which a tensor of numbers, or a mask, says positions: where to take, where to put."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from partitioner.graph.nodes import Ref
from partitioner.graph.row_call import NodeCall, OperandSlot
from partitioner.graph.row_pattern import RowPattern, RowRule, aligned, all_but


def _embedding(call: NodeCall) -> RowPattern:
    ndim = len(call.outputs[0])
    return RowPattern({0: (None, ndim - 1), 1: range(ndim - 1)})


def _gathered(call: NodeCall) -> RowPattern:
    """gather; take_along_dim, which names index and dimension the other way round, and of none takes all elements."""
    at, dim = (1, 2) if call.name == "take_along_dim" else (2, 1)
    index, ndim = call.shapes[at], len(call.shapes[0])
    if call.given(dim, "dim") is None:
        return RowPattern({0: [None] * ndim, at: [0] if len(index) == 1 else [None] * len(index)})
    return RowPattern({0: all_but({call.dim(dim)}, ndim), at: range(len(index))})


def _scattered(call: NodeCall) -> RowPattern:
    dim = call.dim(1)
    same = all_but({dim}, len(call.shapes[0]))
    return RowPattern({slot: same[: len(shape)] for slot, shape in call.shapes.items()}, frozenset({dim}))


def _stored(call: NodeCall) -> RowPattern:
    """index_copy and the like: a list of numbers says at which positions of a dimension something is put."""
    dim = call.dim(1)
    same = all_but({dim}, len(call.shapes[0]))
    return RowPattern({0: same, 2: [None], 3: same[: len(call.shapes.get(3, ()))]}, frozenset({dim}))


def _selected(call: NodeCall) -> RowPattern:
    dim = call.dim(1)
    return RowPattern({0: all_but({dim}, len(call.shapes[0])), 2: [dim]})


def _indexed_dims(call: NodeCall) -> tuple[list[int | None], int, int]:
    """Where dimensions of x go in x[indices], where the dimensions of the indices begin, and how many there are."""
    indices = call.node.args[1]
    at = [dim for dim, item in enumerate(indices) if isinstance(item, Ref)]
    width = max(len(call.shapes[1, dim]) for dim in at)
    begin = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    free = (d for d in count() if not begin <= d < begin + width)
    return [None if dim in at else next(free) for dim in range(len(call.shapes[0]))], begin, width


def _indexed(call: NodeCall) -> RowPattern:
    where, begin, width = _indexed_dims(call)
    found: dict[OperandSlot, Sequence[int | None]] = {0: where}
    for slot, shape in call.shapes.items():
        if slot != 0:
            found[slot] = [begin + dim for dim in aligned(shape, width)]
    return RowPattern(found)


def _put(call: NodeCall) -> RowPattern:
    """index_put: values stand at x[indices], whose dimensions that are not indexed are x's own."""
    if len(call.masks - {0, 2}) == 1 and len(call.operands) == 3:
        return _masked(call)
    where, _, width = _indexed_dims(call)
    back = {to: dim for dim, to in enumerate(where) if to is not None}
    ndim = len(back) + width
    found: dict[OperandSlot, Sequence[int | None]] = {slot: [None] * len(shape) for slot, shape in call.shapes.items()}
    found[0] = [None if to is None else dim for dim, to in enumerate(where)]
    found[2] = [back.get(dim) for dim in aligned(call.shapes[2], ndim)]
    return RowPattern(found, frozenset(dim for dim, to in enumerate(where) if to is None))


def _masked(call: NodeCall) -> RowPattern:
    """index_put by one mask: of each value one dimension counts what the mask chooses."""
    ((slot, shape),) = ((slot, shape) for slot, shape in call.shapes.items() if slot not in (0, 2))
    assert isinstance(slot, tuple)
    first, ndim = slot[1], len(call.shapes[0])
    own: list[int | None] = [*range(first), None, *range(first + len(shape), ndim)]
    values = [own[dim] for dim in aligned(call.shapes[2], len(own))]
    chosen = frozenset(range(first, first + len(shape))) if None in values and _chooses(call, values) else frozenset()
    return RowPattern({0: range(ndim), slot: range(first, first + len(shape)), 2: values}, chosen)


def _chooses(call: NodeCall, values: Sequence[int | None]) -> bool:
    """Whether there is another value for each position that a mask chooses."""
    return call.shapes[2][values.index(None)] > 1


def _sampled(call: NodeCall) -> RowPattern:
    ndim = len(call.outputs[0])
    return RowPattern({0: [0, 1, *[None] * (ndim - 2)], 1: [0, *range(2, ndim), None]})


INDEX_RULES: dict[str, RowRule] = {
    "embedding": _embedding, "gather": _gathered, "take_along_dim": _gathered, "scatter": _scattered,
    "scatter_add": _scattered, "index": _indexed, "index_put": _put, "index_copy": _stored, "index_add": _stored,
    "index_fill": _stored, "index_select": _selected, "grid_sampler": _sampled,
}  # fmt: skip
