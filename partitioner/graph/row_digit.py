"""DigitFlow: follows one digit of a batch's rows through a graph, node by node.

Each value of the graph is a RowValue (partitioner.graph.row_values).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import CONSTANT, Argument, Input, Node, Parameter, Ref, TensorMeta
from partitioner.graph.operator_classes import operator_name
from partitioner.graph.row_call import call_of, writes
from partitioner.graph.row_moves import JOINS, RESHAPES, equal_places, known_numbers, moves
from partitioner.graph.row_operators import RowOperators, lost_rows
from partitioner.graph.row_pattern import RowPattern
from partitioner.graph.row_places import (
    RowLabel,
    RowPlace,
    any_holds,
    digits_within,
    labels,
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

_OVERWRITES = frozenset({"copy", "fill", "zero"})
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
        self._rows = RowOperators(digit.size)
        self._values: dict[str, tuple[RowValue, ...]] = {}
        self._metas: dict[str, TensorMeta] = {}
        items: tuple[Input | Parameter, ...] = (*graph.inputs, *graph.parameters)
        for item in items:
            self._metas[item.name] = item.meta
            key = self._rows.number(item.name)
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
            if node.group >= 0 and writes(operator_name(node.target)):
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
        natural = length % self._place.size == 0 and numbers == [i * self._place.size // length for i in range(length)]
        return RowFault(value.origin, UNLIKE if natural or None in numbers else MIXED)

    # --- one node

    def _value_of(self, node: Node) -> tuple[RowValue, ...]:
        if node.target == "operator.getitem":
            return (self._values[node.args[0].name][node.args[1]],)
        if node.target == CONSTANT:
            return (SameRows(self._rows.number((node.target, node.args[0])), equal_places(node.args[0])),)
        call = call_of(node, self._metas.__getitem__)
        values = {slot: self._values[name][0] for slot, name in call.operands.items()}
        overwrites = writes(operator_name(node.target)) and call.name in _OVERWRITES
        if overwrites:  # what was there before does not matter
            del values[0]
        lost = next((value for value in values.values() if isinstance(value, LostRows)), None)
        if lost is not None:
            return (lost,) * len(call.outputs)
        key = self._rows.number((node.target, self._canonical(node.args[overwrites:]), self._canonical(node.kwargs)))
        keys = [key if len(call.outputs) == 1 else self._rows.number((key, i)) for i in range(len(call.outputs))]
        if call.name in JOINS:
            return (self._rows.put_together(call, values, key),)
        steps = moves(call, self._known)
        if steps is not None and not isinstance(values[0], OnePart):
            return tuple(self._rows.moved(call, values[0], step, key) for step, key in zip(steps, keys, strict=True))
        parts = {value.number for value in values.values() if isinstance(value, OnePart)}
        if parts:
            if len(parts) > 1 or any(isinstance(value, AllParts | PartPieces) for value in values.values()):
                return (lost_rows(node, MIXED),) * len(keys)
            if all(not pattern.dims and pattern.forms for pattern in patterns(call) or [RowPattern({})]):
                return tuple(SameRows(key, whole(shape)) for key, shape in zip(keys, call.outputs, strict=True))
            return tuple(OnePart(key, min(parts)) for key in keys)
        if call.name in RESHAPES:
            return (self._rows.reshaped(call, values[0], key),)
        found = patterns(call)
        if found is None:
            if any(isinstance(value, AllParts | PartPieces) for value in values.values()):
                return (lost_rows(node, UNKNOWN),) * len(keys)
            return tuple(SameRows(key) for key in keys)
        return tuple(self._rows.joined(call, values, *each) for each in zip(found, call.outputs, keys, strict=True))

    def _canonical(self, argument: Argument) -> Hashable:
        if isinstance(argument, Ref):
            return ("%", *(value_key(value) for value in self._values[argument.name]))
        if isinstance(argument, tuple):
            return tuple(map(self._canonical, argument))
        return (type(argument), repr(argument) if isinstance(argument, float) else argument)

    def _known(self, name: str) -> Sequence[int] | None:
        """The numbers that a value holds, where they are known."""
        node = self._graph.node_by_name.get(name)
        while (
            node is not None
            and node.group < 0
            and operator_name(node.target) in _COPIES
            and isinstance(node.args[0], Ref)
        ):
            node = self._graph.node_by_name.get(node.args[0].name)
        return None if node is None or node.group >= 0 else known_numbers(node)

    # --- storage that is written to in place

    def _write(self, node: Node) -> None:
        """Have the storage that a node wrote to, and all views of it, be what they are then."""
        owner, views = self._storage[node.group]
        written, former = self._values[node.name][0], self._values[owner.name][0]
        key = self._rows.number(("write", node.key, value_key(former), value_key(written)))
        now = self._owner_after(owner, views, node, former, written, key)
        self._values[owner.name] = (now,)
        for view in views:
            if view.name in self._values:
                self._values[view.name] = self._seen(view)

    def _seen(self, view: Node) -> tuple[RowValue, ...]:
        """What a view shows of what its storage is."""
        if writes(operator_name(view.target)):
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
            return OnePart(key, former.number) if isinstance(written, SameRows) else lost_rows(node, MIXED)
        if isinstance(former, AllParts):
            seen = self._through(chain, owner, former)
            if isinstance(seen, AllParts) and (
                (isinstance(written, AllParts) and written.place == seen.place)
                or (isinstance(written, SameRows) and any_holds(written.places, seen.place))
            ):
                return AllParts(key, former.place)
            return lost_rows(node, MIXED if isinstance(written, AllParts | OnePart) else UNLIKE)
        if isinstance(written, AllParts):
            for place in digits_within(former.places, self._place.size):
                seen = self._through(chain, owner, AllParts(key, place))
                if isinstance(seen, AllParts) and seen.place == written.place:
                    return AllParts(key, place)
            return lost_rows(node, UNKNOWN)
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
        key = self._rows.number(
            ("write", node.target, value_key(former) if isinstance(former, OnePart) else 0, value_key(written))
        )
        if isinstance(former, OnePart):
            if not isinstance(written, OnePart) or written.number != former.number:
                return lost_rows(node, MIXED)
            return OnePart(self._rows.number((key, *map(self._path, chain))), former.number)
        steps = moves(call_of(chain[0], self._metas.__getitem__), self._known) if len(chain) == 1 else None
        if not steps or len(steps) > 1 or len(steps[0].takes) > 1 or not isinstance(written, OnePart):
            return lost_rows(node, UNKNOWN)
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
            return lost_rows(node, UNKNOWN)
        for k, i in enumerate(index):
            every[i] = (written.number, (written.key, steps[0].dropped, k))
        return self._rows.of_positions(node, self._rows.number(("written", former.key)), dim, every)

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
