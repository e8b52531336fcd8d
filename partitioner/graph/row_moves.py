"""Operators that take positions of a dimension as they are: slices, chunks, repeats, flips, known indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy

from partitioner.graph.nodes import CONSTANT, Node, Ref, TensorData
from partitioner.graph.row_call import NodeCall
from partitioner.graph.row_places import RowPlace

RESHAPES = frozenset({
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "view_as", "reshape_as", "ravel",
    "_reshape_alias",
})  # fmt: skip
JOINS = frozenset({"cat", "concat", "concatenate", "stack"})
_MOST = 4096  # numbers in a list by which positions are looked up


@dataclass(frozen=True)
class RowMove:
    """Which positions of operand 0 an output has.

    Attributes:
        takes: dimensions and which of their positions are taken, one after the other.
        dropped: whether the last of these dimensions is dropped.
        leading: dimensions of size 1 that are put before all others first.
    """

    takes: tuple[tuple[int, Sequence[int]], ...]
    dropped: bool = False
    leading: int = 0


def moves(call: NodeCall, numbers: Callable[[str], Sequence[int] | None]) -> list[RowMove] | None:
    """The positions that each output has; None for operators of other kinds.

    Args:
        call: a node.
        numbers: gives what a value of the graph holds where that is a known list of numbers, else None.
    """
    rule = _RULES.get(call.name)
    if rule is not None:
        return rule(call)
    if call.name in ("index", "index_select"):
        return _looked_up(call, numbers)
    return None


def known_numbers(node: Node) -> list[int] | None:
    """What a node makes, where that is a list of whole numbers that stands in the graph."""
    if len(node.outputs) != 1 or len(node.meta.shape) > 1 or node.meta.numel > _MOST:
        return None
    if node.target == CONSTANT and node.meta.dtype == "int64":
        return [int(number) for number in numpy.frombuffer(node.args[0].values, numpy.int64)]
    if node.target.startswith("aten.arange.") and all(isinstance(item, int) for item in node.args):
        return list(range(*node.args))
    return None


def equal_places(data: TensorData) -> tuple[RowPlace, ...]:
    """The dimensions along which a tensor of data is equal everywhere; larger ones are not looked at."""
    shape, bytes_each = data.meta.shape, data.meta.size_bytes // max(1, data.meta.numel)
    if not 0 < data.meta.numel <= _MOST:
        return ()
    items = numpy.frombuffer(data.values, f"V{bytes_each}")
    strides = tuple(step * bytes_each for step in data.meta.stride)
    seen = numpy.lib.stride_tricks.as_strided(items, shape, strides, writeable=False)
    dims = (d for d, size in enumerate(shape) if size > 1)
    return tuple(RowPlace(d, 1, shape[d]) for d in dims if (seen == numpy.take(seen, [0], axis=d)).all())


def _sliced(call: NodeCall) -> list[RowMove]:
    dim = call.dim(1, 0)
    start, end = call.given(2, "start"), call.given(3, "end")
    index = range(call.shapes[0][dim])[slice(start, end, call.given(4, "step", 1))]
    return [RowMove(((dim, index),))]


def _selected(call: NodeCall) -> list[RowMove]:
    dim = call.dim(1)
    return [RowMove(((dim, [call.given(2, "index") % call.shapes[0][dim]]),), dropped=True)]


def _narrowed(call: NodeCall) -> list[RowMove]:
    dim, start = call.dim(1), call.given(2, "start")
    start %= max(1, call.shapes[0][dim])
    return [RowMove(((dim, range(start, start + call.given(3, "length"))),))]


def _split(position: int) -> Callable[[NodeCall], list[RowMove]]:
    def rule(call: NodeCall) -> list[RowMove]:
        dim = call.dim(position, 0)
        ends = list(accumulate(shape[dim] for shape in call.outputs))
        return [RowMove(((dim, range(end - shape[dim], end)),)) for end, shape in zip(ends, call.outputs, strict=True)]

    return rule


def _unbound(call: NodeCall) -> list[RowMove]:
    dim = call.dim(1, 0)
    return [RowMove(((dim, [i]),), dropped=True) for i in range(call.shapes[0][dim])]


def _flipped(call: NodeCall) -> list[RowMove]:
    shape = call.shapes[0]
    dims = [dim % len(shape) for dim in call.given(1, "dims")]
    return [RowMove(tuple((dim, range(shape[dim])[::-1]) for dim in dims))]


def _rolled(call: NodeCall) -> list[RowMove] | None:
    shape, shifts, dims = call.shapes[0], _list(call.given(1, "shifts")), _list(call.given(2, "dims", ()))
    if not dims:
        return None  # of all elements in a row
    places = [dim % len(shape) for dim in dims]
    takes = [
        (dim, [(i - shift) % shape[dim] for i in range(shape[dim])]) for dim, shift in zip(places, shifts, strict=True)
    ]
    return [RowMove(tuple(takes))]


def _interleaved(call: NodeCall) -> list[RowMove] | None:
    times, dim = call.given(1, "repeats"), call.given(2, "dim")
    if not isinstance(times, int) or dim is None:
        return None
    dim = call.dim(2)
    return [RowMove(((dim, [i // times for i in range(call.shapes[0][dim] * times)]),))]


def _repeated(call: NodeCall) -> list[RowMove]:
    times, shape = call.given(1, "repeats"), call.shapes[0]
    leading = max(0, len(times) - len(shape))
    times = (1,) * (len(shape) - len(times)) + times
    sizes = (1,) * leading + shape
    many = [(dim, list(range(sizes[dim])) * count) for dim, count in enumerate(times) if count != 1]
    return [RowMove(tuple(many), leading=leading)]


def _looked_up(call: NodeCall, numbers: Callable[[str], Sequence[int] | None]) -> list[RowMove] | None:
    if call.name == "index_select":
        dim, name = call.dim(1), call.operands.get(2)
    else:
        places = [(dim, item.name) for dim, item in enumerate(call.node.args[1]) if isinstance(item, Ref)]
        if len(places) != 1:
            return None
        dim, name = places[0]
    found = None if name is None else numbers(name)
    if found is None or len(call.outputs[0]) != len(call.shapes[0]):
        return None
    size = call.shapes[0][dim]
    return [RowMove(((dim, [i % size for i in found]),))]


def _list(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple) else [value]


_RULES: dict[str, Callable[[NodeCall], list[RowMove] | None]] = {
    "slice": _sliced, "select": _selected, "narrow": _narrowed, "chunk": _split(2), "split": _split(2),
    "split_with_sizes": _split(2), "tensor_split": _split(2), "unbind": _unbound, "flip": _flipped, "roll": _rolled,
    "repeat_interleave": _interleaved, "repeat": _repeated, "tile": _repeated, "unsafe_chunk": _split(2),
    "unsafe_split": _split(2),
}  # fmt: skip
