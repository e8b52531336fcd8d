"""part_fault: whether a call of some of the rows does with them what the whole call does, by the graphs of both.

Where the same operators come in the same order, each must make of a part what it makes of the whole: a tensor that is
divided where the rows are, and else the same, by the same numbers.

    whole   reshape(x, (2, 8, 64))     the rows' halves at dimension 0
    part    reshape(x, (1, 8, 64))     right
            reshape(x, (2, 4, 64))     takes one half for two: another denoiser
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import CONSTANT, Argument, Node
from partitioner.graph.operator_classes import operator_name
from partitioner.graph.row_digit import DigitFlow
from partitioner.graph.row_moves import JOINS, RESHAPES
from partitioner.graph.row_values import UNLIKE, AllParts, OnePart, PartPieces, RowFault, RowValue, SameRows

_SIZED = RESHAPES | JOINS | {
    "expand", "broadcast_to", "repeat", "tile", "repeat_interleave", "zeros", "ones", "empty", "new_zeros", "new_ones",
    "new_empty", "empty_strided",
}  # fmt: skip
# of a layout that a part has already, as one row is always contiguous
_COPIES = {"contiguous", "clone", "to", "_to_copy", "type_as", "lift_fresh_copy", "alias", "detach"}
_FILLED = {"full", "new_full"}
_TAKEN = {"slice", "select", "narrow", "split", "split_with_sizes", "chunk"}


def part_fault(whole: TracedGraph, part: TracedGraph, flows: Sequence[DigitFlow], rows: int) -> RowFault | None:
    """The first operator that does not do with a part what it does with the whole; None where all do.

    Args:
        whole: the graph of the whole call.
        part: the graph of the call of a part.
        flows: of each digit of the rows by which parts are counted, in the whole.
        rows: of the whole call.
    """
    # torch itself reshapes a single row here and there; what comes of it shows in the next operator's shape
    pairs = _paired(whole, part, _COPIES) or _paired(whole, part, _COPIES | RESHAPES)
    if pairs is None:
        return _row_by_row(whole, part, flows)
    shapes = [(item.meta.shape, part.input_by_name[item.name].meta.shape) for item in whole.inputs]
    share = next(((its[0], own[0]) for own, its in shapes if own and own[0] % rows == 0 and own != its), (1, 1))
    for one, other in pairs:
        if not _does_alike(one, other, flows, share):
            return RowFault(one.key, UNLIKE)
    return None


def _paired(whole: TracedGraph, part: TracedGraph, but: Set[str]) -> list[tuple[Node, Node]] | None:
    """The operators of two graphs, but for some, which come in the same order; None where they do not."""
    ones, others = ([n for n in graph.nodes if operator_name(n.target) not in but] for graph in (whole, part))
    if len(ones) != len(others) or any(_kind(a) != _kind(b) for a, b in zip(ones, others, strict=True)):
        return None
    return list(zip(ones, others, strict=True))


def _kind(node: Node) -> tuple[str, str]:
    """Module and operator; a number and several equal ones are constants both."""
    return node.module, "constant" if node.target in (CONSTANT, "aten.full.default") else node.target


def _row_by_row(whole: TracedGraph, part: TracedGraph, flows: Sequence[DigitFlow]) -> RowFault | None:
    """Where rows are handled one after the other, and a part has fewer operators: it must have no others."""
    kinds = {(node.module, node.target) for node in whole.nodes}
    odd = next((node for node in part.nodes if (node.module, node.target) not in kinds), None)
    if odd is not None:
        return RowFault(odd.key, UNLIKE)
    taken = [node for node in whole.nodes for flow in flows if isinstance(flow.values(node.name)[0], OnePart)]
    if taken:
        return None
    its = {node.key for node in part.nodes}
    missing = next((node for node in whole.nodes if node.key not in its), whole.nodes[0])
    return RowFault(missing.key, UNLIKE)


def _does_alike(one: Node, other: Node, flows: Sequence[DigitFlow], share: tuple[int, int]) -> bool:
    for index, (meta, own) in enumerate(zip(one.outputs, other.outputs, strict=True)):
        values = [flow.values(one.name)[index] for flow in flows]
        if any(isinstance(value, OnePart | PartPieces) for value in values):
            continue
        divided = {value.place.dim for value in values if isinstance(value, AllParts)}
        for dim, (size, mine) in enumerate(zip(meta.shape, own.shape, strict=False)):
            if dim in divided and len(divided) == 1:
                if mine * share[1] != size * share[0]:
                    return False
            elif dim not in divided and size != mine and not _is_equal_along(values, dim):
                return False
        if len(meta.shape) != len(own.shape) or (len(divided) > 1 and meta.numel * share[0] != own.numel * share[1]):
            return False
    return _has_same_numbers(one, other, flows)


def _is_equal_along(values: Sequence[RowValue], dim: int) -> bool:
    """Whether a tensor that no row is in is equal along a dimension, so that it may be shorter in a part."""
    same = [value for value in values if isinstance(value, SameRows)]
    return bool(same) and all(any(place.dim == dim for place in value.places) for value in same)


def _has_same_numbers(one: Node, other: Node, flows: Sequence[DigitFlow]) -> bool:
    """Whether two calls of an operator have the same arguments, but for sizes and positions that count rows."""
    name = operator_name(one.target)
    if "constant" in _kind(one):
        return _number_of(one) == _number_of(other)
    if name in _SIZED:
        return True
    mine, its = _literals(one), _literals(other)
    if mine == its:
        return True
    if name in _FILLED:
        return bool(mine[-1] == its[-1])
    if name in _TAKEN:  # shapes are the same already; positions count where the rows do not lie
        dim = one.args[1] if len(one.args) > 1 and name in ("slice", "select", "narrow") else None
        places = [
            place
            for flow in flows
            for value in flow.values(one.args[0].name)
            if isinstance(value, AllParts | SameRows)
            for place in value.places
        ]
        return dim is None or any(place.dim == dim for place in places)
    return False


def _number_of(node: Node) -> object:
    """The number that all elements of a constant are; where they are not, all of them."""
    if node.target != CONSTANT:
        return node.args[1]
    data = node.args[0]
    if data.meta.dtype not in _DTYPES:
        return data
    numbers = set(numpy.frombuffer(data.values, data.meta.dtype).tolist())
    return numbers.pop() if len(numbers) == 1 else data


_DTYPES = {"int64", "int32", "float32", "float64", "bool", "uint8"}


def _literals(node: Node) -> list[Argument]:
    """The arguments that are no values, names of values aside."""

    def plain(argument: Argument) -> Argument:
        if isinstance(argument, tuple):
            return tuple(map(plain, argument))
        return argument if argument is None or isinstance(argument, bool | int | float | str) else ""

    return [plain(argument) for argument in (*node.args, *(value for _, value in node.kwargs))]
