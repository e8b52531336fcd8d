"""DigitFlow: follows one digit of a batch's rows through a graph, node by node.

Each value of the graph is a RowValue (partitioner.graph.row_values).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import CONSTANT, Argument, Input, Node, Parameter, Ref, TensorMeta
from partitioner.graph.row_call import NodeCall, OperandSlot, call_of, writes
from partitioner.graph.row_moves import JOINS, RESHAPES, RowMove, equal_places, known_numbers, moves
from partitioner.graph.row_pattern import RowPattern
from partitioner.graph.row_places import (
    Extents,
    RowLabel,
    RowPlace,
    any_holds,
    digits_within,
    equal_after,
    labels,
    regular,
    reshaped,
    whole,
)
from partitioner.graph.row_rules import patterns
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
    value_key,
)

OVERWRITES = frozenset({"copy", "fill", "zero"})
_COPIES = frozenset({"lift_fresh_copy", "to", "alias", "detach", "clone"})


class DigitFlow:
    """What each value of a graph has of one digit of the rows.

    Attributes:
        fault: where the rows do not stay apart; None where they do.
    """

    def __init__(
        self, graph: TracedGraph, rows: Mapping[str, RowPlace], equal: Mapping[str, RowPlace], digit: RowPlace
    ) -> None:
        """Follow them.

        Args:
            graph: of a whole call.
            rows: the digit's place in the inputs that are divided.
            equal: where inputs are equal.
            digit: its place in the results.
        """
        self._graph = graph
        self._place = digit
        self._size = digit.size
        self._numbers: dict[Hashable, int] = {}
        self._values: dict[str, tuple[RowValue, ...]] = {}
        self._metas: dict[str, TensorMeta] = {}
        items: tuple[Input | Parameter, ...] = (*graph.inputs, *graph.parameters)
        for item in items:
            self._metas[item.name] = item.meta
            key = self._number(item.name)
            value: RowValue = SameRows(key, (equal[item.name],) if item.name in equal else ())
            self._values[item.name] = (AllParts(key, rows[item.name]) if item.name in rows else value,)
        self._storage = _storages(graph)
        self.fault = self._follow()

    def values(self, name: str) -> tuple[RowValue, ...]:
        """What is known of a value, or of each output of a node."""
        return self._values[name]

    def _follow(self) -> RowFault | None:
        """Where the rows do not stay apart, if anywhere that the results depend on."""
        for node in self._graph.nodes:
            if len(node.outputs) == 1:
                self._metas[node.name] = node.meta
            self._values[node.name] = self._value_of(node)
            if node.group >= 0 and writes(_name(node)):
                self._write(node)
        for name in self._graph.result_values:
            for value in self._values[name]:
                if isinstance(value, LostRows):
                    return value.fault
                if isinstance(value, PartPieces):
                    return self._disorder(value)
                if isinstance(value, OnePart) or not any_holds(value.places, self._place):
                    key = self._graph.node_by_name[name].key if name in self._graph.node_by_name else name
                    return RowFault(key, UNKNOWN if isinstance(value, SameRows) else MIXED)
        return None

    def _disorder(self, value: PartPieces) -> RowFault:
        """What is wrong with positions that are not in the order of a RowPlace."""
        numbers = [None if label is None else label[0] for label in value.labels]
        length = len(numbers)
        natural = length % self._size == 0 and numbers == [i * self._size // length for i in range(length)]
        return RowFault(value.origin, UNLIKE if natural or None in numbers else MIXED)

    # --- one node

    def _value_of(self, node: Node) -> tuple[RowValue, ...]:
        if node.target == "operator.getitem":
            return (self._values[node.args[0].name][node.args[1]],)
        if node.target == CONSTANT:
            return (SameRows(self._number((node.target, node.args[0])), equal_places(node.args[0])),)
        call = call_of(node, self._metas.__getitem__)
        values = {slot: self._values[name][0] for slot, name in call.operands.items()}
        overwrites = writes(_name(node)) and call.name in OVERWRITES
        if overwrites:  # what was there before does not matter
            del values[0]
        lost = next((value for value in values.values() if isinstance(value, LostRows)), None)
        if lost is not None:
            return (lost,) * len(call.outputs)
        key = self._number((node.target, self._canonical(node.args[overwrites:]), self._canonical(node.kwargs)))
        keys = [key if len(call.outputs) == 1 else self._number((key, i)) for i in range(len(call.outputs))]
        if call.name in JOINS:
            return (self._put_together(call, values, key),)
        steps = moves(call, self._known)
        if steps is not None and not isinstance(values[0], OnePart):
            return tuple(self._moved(call, values[0], step, key) for step, key in zip(steps, keys, strict=True))
        parts = {value.number for value in values.values() if isinstance(value, OnePart)}
        if parts:
            if len(parts) > 1 or any(isinstance(value, AllParts | PartPieces) for value in values.values()):
                return (self._lost(node, MIXED),) * len(keys)
            if all(not pattern.dims and pattern.forms for pattern in patterns(call) or [RowPattern({})]):
                return tuple(SameRows(key, whole(shape)) for key, shape in zip(keys, call.outputs, strict=True))
            return tuple(OnePart(key, min(parts)) for key in keys)
        if call.name in RESHAPES:
            return (self._reshaped(call, values[0], key),)
        found = patterns(call)
        if found is None:
            if any(isinstance(value, AllParts | PartPieces) for value in values.values()):
                return (self._lost(node, UNKNOWN),) * len(keys)
            return tuple(SameRows(key) for key in keys)
        return tuple(self._joined(call, values, *each) for each in zip(found, call.outputs, keys, strict=True))

    def _lost(self, node: Node, what: str) -> LostRows:
        return LostRows(RowFault(node.key, what))

    def _number(self, what: Hashable) -> int:
        """The number of what can be told apart: the same for the same."""
        return self._numbers.setdefault(what, len(self._numbers))

    def _canonical(self, argument: Argument) -> Hashable:
        if isinstance(argument, Ref):
            return ("%", *(value_key(value) for value in self._values[argument.name]))
        if isinstance(argument, tuple):
            return tuple(map(self._canonical, argument))
        return (type(argument), repr(argument) if isinstance(argument, float) else argument)

    def _known(self, name: str) -> Sequence[int] | None:
        """The numbers that a value holds, where they are known."""
        node = self._graph.node_by_name.get(name)
        while node is not None and node.group < 0 and _name(node) in _COPIES and isinstance(node.args[0], Ref):
            node = self._graph.node_by_name.get(node.args[0].name)
        return None if node is None or node.group >= 0 else known_numbers(node)

    # --- kinds of operators

    def _joined(
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
                return self._lost(call.node, UNKNOWN)
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
                return self._lost(call.node, MIXED)
            if isinstance(value, AllParts):
                rows.append(value.place._replace(dim=where[dim]))
            else:
                rows.append(RowPlace(where[dim], 1, shape[where[dim]]))
                orders.add((value.labels, value.origin))
        if rows:
            at = rows[0]
            if len(set(rows)) > 1 or at.dim in pattern.varies or len(orders) > 1:
                return self._lost(call.node, MIXED)
            if at.dim in uneven or not all(any_holds(places, at) for places in equal):
                return self._lost(call.node, UNLIKE)
            if not orders:
                return AllParts(key, at)
            mixed = any(isinstance(value, AllParts) for value in values.values())
            return self._lost(call.node, UNKNOWN) if mixed else PartPieces(key, at.dim, *orders.pop())
        every = [place for places in equal for place in places] if equal else whole(shape)
        kept = (p for p in every if p.dim not in uneven and all(any_holds(places, p) for places in equal))
        return SameRows(key, tuple(dict.fromkeys(kept)))

    def _reshaped(self, call: NodeCall, value: RowValue, key: int) -> RowValue:
        own, shape = call.shapes[0], call.outputs[0]
        if isinstance(value, SameRows):
            return SameRows(key, reshaped(value.places, own, shape))
        assert isinstance(value, AllParts | PartPieces)
        place = value.place if isinstance(value, AllParts) else RowPlace(value.dim, 1, own[value.dim])
        found = reshaped([place], own, shape)
        if len(found) != 1 or found[0].size != place.size:
            return self._lost(call.node, UNKNOWN)
        if isinstance(value, AllParts):
            return AllParts(key, found[0])
        exact = shape[found[0].dim] == place.size
        return replace(value, key=key, dim=found[0].dim) if exact else self._lost(call.node, UNKNOWN)

    def _moved(self, call: NodeCall, value: RowValue, move: RowMove, key: int) -> RowValue:
        """What an operator makes that takes positions of a dimension."""
        shape = (1,) * move.leading + call.shapes[0]
        gone = move.takes[-1][0] if move.dropped else len(shape)
        if isinstance(value, AllParts | PartPieces):
            at = value.place.dim if isinstance(value, AllParts) else value.dim
            at += move.leading
            for dim, index in move.takes:
                if dim == at and (move.dropped or len(index) != shape[dim] or list(index) != list(range(len(index)))):
                    if len(move.takes) > 1:
                        return self._lost(call.node, UNKNOWN)
                    every = value.labels if isinstance(value, PartPieces) else labels(value.place, shape[dim])
                    return self._of_positions(
                        call.node, value.key, dim, [every[i] for i in index], dropped=move.dropped
                    )
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

    def _of_positions(
        self, node: Node, key: int, dim: int, found: Sequence[RowLabel | None], *, dropped: bool = False
    ) -> RowValue:
        """A value whose positions along a dimension have these labels. key: of what it was taken of."""
        numbers = {label[0] for label in found if label is not None}
        whats = tuple(label[1] for label in found if label is not None)
        if not numbers:
            return SameRows(self._number(("take", key, dim, len(found), dropped)))
        if len(numbers) == 1 and len(whats) == len(found):
            return OnePart(self._number(("take", key, dim, whats, dropped)), numbers.pop())
        place = regular(dim, self._size, [label for label in found if label is not None])
        now = self._number(("take", key, dim, dropped))
        if place is not None and len(whats) == len(found):
            return AllParts(self._number((now, whats)), place)
        return PartPieces(now, dim, tuple(found), node.key)

    def _put_together(self, call: NodeCall, values: Mapping[OperandSlot, RowValue], key: int) -> RowValue:
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
            return self._joined(call, values, RowPattern(dims, frozenset({dim})), call.outputs[0], key)
        found: list[RowLabel] = []
        for slot in slots:
            value, length = values[slot], 1 if stacked else call.shapes[slot][dim]
            if not self._lies(value, dim, stacked=stacked):
                return self._lost(call.node, UNLIKE if isinstance(value, SameRows) else MIXED)
            if isinstance(value, OnePart):
                found += [(value.number, (value.key, i)) for i in range(length)]
                continue
            assert isinstance(value, AllParts | PartPieces)
            every = value.labels if isinstance(value, PartPieces) else labels(value.place, length)
            if None in every:
                return self._lost(call.node, UNLIKE)
            found += [(label[0], (value.key, label[1])) for label in every if label is not None]
        value = self._of_positions(call.node, key, dim, found)
        return value if isinstance(value, AllParts | PartPieces) else self._lost(call.node, MIXED)

    def _lies(self, value: RowValue, dim: int, *, stacked: bool) -> bool:
        """Whether parts lie along the dimension that values are put together in."""
        if isinstance(value, OnePart):
            return True
        return not stacked and dim == (value.place.dim if isinstance(value, AllParts) else getattr(value, "dim", -1))

    # --- storage that is written to in place

    def _write(self, node: Node) -> None:
        """Have the storage that a node wrote to, and all views of it, be what they are then."""
        owner, views = self._storage[node.group]
        written, former = self._values[node.name][0], self._values[owner.name][0]
        key = self._number(("write", node.key, value_key(former), value_key(written)))
        now = self._owner_after(owner, views, node, former, written, key)
        self._values[owner.name] = (now,)
        for view in views:
            if view.name in self._values:
                self._values[view.name] = self._seen(view)

    def _seen(self, view: Node) -> tuple[RowValue, ...]:
        """What a view shows of what its storage is."""
        if writes(_name(view)):
            return self._values[view.args[0].name]
        return self._value_of(view)

    def _owner_after(
        self, owner: Node, views: Sequence[Node], node: Node, former: RowValue, written: RowValue, key: int
    ) -> RowValue:
        if isinstance(written, LostRows) or isinstance(former, LostRows):
            return written if isinstance(written, LostRows) else former
        chain = _chain(owner, views, node.args[0].name)
        if isinstance(written, OnePart | PartPieces) or isinstance(former, PartPieces):
            return self._after_piece(owner, chain, node, former, written)
        if isinstance(former, OnePart):
            return OnePart(key, former.number) if isinstance(written, SameRows) else self._lost(node, MIXED)
        if isinstance(former, AllParts):
            seen = self._through(chain, owner, former)
            if isinstance(seen, AllParts) and (
                (isinstance(written, AllParts) and written.place == seen.place)
                or (isinstance(written, SameRows) and any_holds(written.places, seen.place))
            ):
                return AllParts(key, former.place)
            return self._lost(node, MIXED if isinstance(written, AllParts | OnePart) else UNLIKE)
        if isinstance(written, AllParts):
            for place in digits_within(former.places, self._size):
                seen = self._through(chain, owner, AllParts(key, place))
                if isinstance(seen, AllParts) and seen.place == written.place:
                    return AllParts(key, place)
            return self._lost(node, UNKNOWN)
        kept = []
        for place in former.places:
            seen = self._through(chain, owner, SameRows(key, (place,)))
            if isinstance(seen, SameRows) and any(
                p.size == place.size and any_holds(written.places, p) for p in seen.places
            ):
                kept.append(place)
        return SameRows(key, tuple(kept))

    def _after_piece(
        self, owner: Node, chain: Sequence[Node], node: Node, former: RowValue, written: RowValue
    ) -> RowValue:
        """What a storage is after something of one part was written to some positions of a dimension."""
        key = self._number(
            ("write", node.target, value_key(former) if isinstance(former, OnePart) else 0, value_key(written))
        )
        if isinstance(former, OnePart):
            fits = isinstance(written, OnePart) and written.number == former.number
            return (
                OnePart(self._number((key, *map(self._path, chain))), former.number)
                if fits
                else self._lost(node, MIXED)
            )
        steps = moves(call_of(chain[0], self._metas.__getitem__), self._known) if len(chain) == 1 else None
        if not steps or len(steps) > 1 or len(steps[0].takes) > 1 or not isinstance(written, OnePart | AllParts):
            return self._lost(node, UNKNOWN)
        ((dim, index),) = steps[0].takes
        length = self._metas[owner.name].shape[dim]
        every: list[RowLabel | None]
        if isinstance(former, PartPieces) and former.dim == dim:
            every = list(former.labels)
        elif isinstance(former, AllParts) and former.place.dim == dim:
            every = [(number, (former.key, what)) for number, what in labels(former.place, length)]
        elif isinstance(former, SameRows) and any_holds(former.places, RowPlace(dim, 1, length)):
            every = [None] * length
        else:
            return self._lost(node, UNKNOWN)
        if isinstance(written, AllParts):
            return self._lost(node, UNKNOWN)
        for k, i in enumerate(index):
            every[i] = (written.number, (written.key, steps[0].dropped, k))
        return self._of_positions(node, self._number(("written", former.key)), dim, every)

    def _path(self, view: Node) -> Hashable:
        return view.target, self._canonical(view.args[1:])

    def _through(self, chain: Sequence[Node], owner: Node, value: RowValue) -> RowValue:
        """What a chain of views shows of a storage, if that is ``value``."""
        before = {node.name: self._values.get(node.name) for node in (owner, *chain)}
        self._values[owner.name] = (value,)
        for view in chain:
            self._values[view.name] = self._seen(view)
        shown = self._values[chain[-1].name][0] if chain else value
        for name, values in before.items():
            if values is not None:
                self._values[name] = values
        return shown


def _name(node: Node) -> str:
    return node.target.split(".")[1]


def _storages(graph: TracedGraph) -> dict[int, tuple[Node, list[Node]]]:
    """Of each storage that is written to: the node that made it, and those that show it."""
    found: dict[int, tuple[Node, list[Node]]] = {}
    for node in graph.nodes:
        if node.group >= 0:
            if node.group in found:
                found[node.group][1].append(node)
            else:
                found[node.group] = (node, [])
    return found


def _chain(owner: Node, views: Sequence[Node], target: str) -> list[Node]:
    """The views from a storage's owner to one of them, which is last; none for the owner itself."""
    by_name = {view.name: view for view in views}
    chain: list[Node] = []
    while target != owner.name:
        chain.append(by_name[target])
        target = by_name[target].args[0].name
    return chain[::-1]
