"""RowOperators: what operators of each kind make of values, as far as one digit of a batch's rows goes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from partitioner.graph.nodes import Node
from partitioner.graph.row_call import NodeCall, OperandSlot
from partitioner.graph.row_moves import RowMove
from partitioner.graph.row_pattern import RowPattern
from partitioner.graph.row_places import (
    Extents,
    RowLabel,
    RowPlace,
    any_holds,
    equal_after,
    labels,
    regular,
    reshaped,
    whole,
)
from partitioner.graph.row_values import (
    MIXED,
    UNKNOWN,
    UNLIKE,
    AllParts,
    LostRows,
    OnePart,
    PartPieces,
    RowFault,
    RowValue,
    SameRows,
)


def lost_rows(node: Node, what: str) -> LostRows:
    """The value of a node in which rows do not stay apart. what: of a RowFault."""
    return LostRows(RowFault(node.key, what))


class RowOperators:
    """What operators make of values; all values of a graph that are the same by what they were made of have one number.

    Args:
        size: of the digit.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._numbers: dict[Hashable, int] = {}

    def number(self, what: Hashable) -> int:
        """The number of what can be told apart: the same for the same."""
        return self._numbers.setdefault(what, len(self._numbers))

    def joined(
        self, call: NodeCall, values: Mapping[OperandSlot, RowValue], pattern: RowPattern, shape: Extents, key: int
    ) -> RowValue:
        """What an operator makes whose operands' dimensions go where a pattern says."""
        equal: list[list[RowPlace]] = []  # of each operand: places in the output along which it is equal
        rows: list[RowPlace] = []
        orders: set[tuple[tuple[RowLabel | None, ...], str]] = set()  # of the positions of PartPieces
        uneven = set(pattern.varies)
        for slot, value in values.items():
            if slot not in pattern.dims:
                if pattern.forms or isinstance(value, SameRows):
                    continue
                return lost_rows(call.node, UNKNOWN)
            own, dims = call.shapes[slot], pattern.dims[slot]
            where = {d: to for d, to in enumerate(dims) if to is not None and own[d] == shape[to] and own[d] > 1}
            uneven |= {to for d, to in enumerate(dims) if to is not None and own[d] not in (1, shape[to])}
            if isinstance(value, SameRows):
                free = [RowPlace(d, 1, size) for d, size in enumerate(shape) if d not in where.values() and size > 1]
                equal.append(free + [p._replace(dim=where[p.dim]) for p in value.places if p.dim in where])
                continue
            assert isinstance(value, AllParts | PartPieces)
            dim = value.place.dim if isinstance(value, AllParts) else value.dim
            if dim not in where:
                return lost_rows(call.node, MIXED)
            if isinstance(value, AllParts):
                rows.append(value.place._replace(dim=where[dim]))
            else:
                rows.append(RowPlace(where[dim], 1, shape[where[dim]]))
                orders.add((value.labels, value.origin))
        if rows:
            at = rows[0]
            if len(set(rows)) > 1 or at.dim in pattern.varies or len(orders) > 1:
                return lost_rows(call.node, MIXED)
            if at.dim in uneven or not all(any_holds(places, at) for places in equal):
                return lost_rows(call.node, UNLIKE)
            if not orders:
                return AllParts(key, at)
            mixed = any(isinstance(value, AllParts) for value in values.values())
            return lost_rows(call.node, UNKNOWN) if mixed else PartPieces(key, at.dim, *orders.pop())
        every = [place for places in equal for place in places] if equal else whole(shape)
        kept = (p for p in every if p.dim not in uneven and all(any_holds(places, p) for places in equal))
        return SameRows(key, tuple(dict.fromkeys(kept)))

    def reshaped(self, call: NodeCall, value: RowValue, key: int) -> RowValue:
        """What an operator makes that gives a tensor another shape."""
        own, shape = call.shapes[0], call.outputs[0]
        if isinstance(value, SameRows):
            return SameRows(key, reshaped(value.places, own, shape))
        assert isinstance(value, AllParts | PartPieces)
        place = value.place if isinstance(value, AllParts) else RowPlace(value.dim, 1, own[value.dim])
        found = reshaped([place], own, shape)
        if len(found) != 1 or found[0].size != place.size:
            return lost_rows(call.node, UNKNOWN)
        if isinstance(value, AllParts):
            return AllParts(key, found[0])
        exact = shape[found[0].dim] == place.size
        return replace(value, key=key, dim=found[0].dim) if exact else lost_rows(call.node, UNKNOWN)

    def moved(self, call: NodeCall, value: RowValue, move: RowMove, key: int) -> RowValue:
        """What an operator makes that takes positions of a dimension."""
        shape = (1,) * move.leading + call.shapes[0]
        gone = move.takes[-1][0] if move.dropped else len(shape)
        if isinstance(value, AllParts | PartPieces):
            at = value.place.dim if isinstance(value, AllParts) else value.dim
            at += move.leading
            for dim, index in move.takes:
                if dim == at and (move.dropped or len(index) != shape[dim] or list(index) != list(range(len(index)))):
                    if len(move.takes) > 1:
                        return lost_rows(call.node, UNKNOWN)
                    every = value.labels if isinstance(value, PartPieces) else labels(value.place, shape[dim])
                    return self.of_positions(call.node, value.key, dim, [every[i] for i in index], dropped=move.dropped)
            at -= at > gone
            return (
                replace(value, key=key, dim=at)
                if isinstance(value, PartPieces)
                else AllParts(key, value.place._replace(dim=at))
            )
        assert isinstance(value, SameRows)
        equal = [p._replace(dim=p.dim + move.leading) for p in value.places]
        for dim, index in move.takes:
            equal = [*equal_after(equal, dim, shape[dim], index)]
            shape = (*shape[:dim], len(index), *shape[dim + 1 :])
        return SameRows(key, tuple(p._replace(dim=p.dim - (p.dim > gone)) for p in equal if p.dim != gone))

    def of_positions(
        self, node: Node, key: int, dim: int, found: Sequence[RowLabel | None], *, dropped: bool = False
    ) -> RowValue:
        """A value whose positions along a dimension have these labels. key: of what it was taken of."""
        numbers = {label[0] for label in found if label is not None}
        whats = tuple(label[1] for label in found if label is not None)
        if not numbers:
            return SameRows(self.number(("take", key, dim, len(found), dropped)))
        if len(numbers) == 1 and len(whats) == len(found):
            return OnePart(self.number(("take", key, dim, whats, dropped)), numbers.pop())
        place = regular(dim, self._size, [label for label in found if label is not None])
        now = self.number(("take", key, dim, dropped))
        if place is not None and len(whats) == len(found):
            return AllParts(self.number((now, whats)), place)
        return PartPieces(now, dim, tuple(found), node.key)

    def put_together(self, call: NodeCall, values: Mapping[OperandSlot, RowValue], key: int) -> RowValue:
        """What cat and stack make."""
        ndim, stacked = len(call.outputs[0]), call.name == "stack"
        dim = int(call.given(1, "dim", 0)) % ndim
        slots = [slot for slot in values if call.shapes[slot] != (0,) or stacked]
        if not any(self._lies(values[slot], dim, stacked=stacked) for slot in slots):
            dims = {
                slot: [None if d + (stacked and d >= dim) == dim and not stacked else d + (stacked and d >= dim)
                       for d in range(ndim - stacked)]
                for slot in slots
            }  # fmt: skip
            return self.joined(call, values, RowPattern(dims, frozenset({dim})), call.outputs[0], key)
        found: list[RowLabel] = []
        for slot in slots:
            value, length = values[slot], 1 if stacked else call.shapes[slot][dim]
            if not self._lies(value, dim, stacked=stacked):
                return lost_rows(call.node, UNLIKE if isinstance(value, SameRows) else MIXED)
            if isinstance(value, OnePart):
                found += [(value.number, (value.key, i)) for i in range(length)]
                continue
            assert isinstance(value, AllParts | PartPieces)
            every = value.labels if isinstance(value, PartPieces) else labels(value.place, length)
            if None in every:
                return lost_rows(call.node, UNLIKE)
            found += [(label[0], (value.key, label[1])) for label in every if label is not None]
        value = self.of_positions(call.node, key, dim, found)
        return value if isinstance(value, AllParts | PartPieces) else lost_rows(call.node, MIXED)

    def _lies(self, value: RowValue, dim: int, *, stacked: bool) -> bool:
        """Whether parts lie along the dimension that values are put together in."""
        if isinstance(value, OnePart):
            return True
        return not stacked and dim == (value.place.dim if isinstance(value, AllParts) else getattr(value, "dim", -1))
