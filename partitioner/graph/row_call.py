"""NodeCall: a node with the shapes of what it reads, as rules of rows look at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from partitioner.graph.nodes import Argument, Node, Ref, TensorMeta
from partitioner.graph.operator_classes import operator_name
from partitioner.graph.row_places import Extents

OperandSlot = int | str | tuple[int, int]  # of an operand: its position, its name, or its place in a list at a position


@dataclass(frozen=True)
class NodeCall:
    """A node with the shapes of what it reads.

    Attributes:
        node: the node.
        name: of its operator, without namespace, overload and the mark of one that writes in place.
        operands: names of the values that it reads, by slot.
        shapes: their shapes.
        masks: slots of those that are of booleans.
        outputs: shapes of what it returns.
    """

    node: Node
    name: str
    operands: Mapping[OperandSlot, str]
    shapes: Mapping[OperandSlot, Extents]
    masks: frozenset[OperandSlot]
    outputs: tuple[Extents, ...]

    def given(self, position: int, name: str, default: Argument = None) -> Any:
        """A literal argument, by position or name."""
        if position < len(self.node.args):
            return self.node.args[position]
        return dict(self.node.kwargs).get(name, default)

    def dim(self, position: int, default: Argument = None) -> int:
        """The argument "dim", counted from the first dimension of operand 0."""
        return int(self.given(position, "dim", default)) % max(1, len(self.shapes[0]))


def call_of(node: Node, meta_of: Callable[[str], TensorMeta]) -> NodeCall:
    """A node as a NodeCall. meta_of: gives what a value is."""
    operands: dict[OperandSlot, str] = {}
    entries: list[tuple[int | str, Argument]] = [*enumerate(node.args), *node.kwargs]
    for slot, argument in entries:
        if isinstance(argument, Ref):
            operands[slot] = argument.name
        elif isinstance(argument, tuple) and isinstance(slot, int):
            operands |= {(slot, i): item.name for i, item in enumerate(argument) if isinstance(item, Ref)}
    metas = {slot: meta_of(name) for slot, name in operands.items()}
    shapes = {slot: meta.shape for slot, meta in metas.items()}
    masks = frozenset(slot for slot, meta in metas.items() if meta.dtype == "bool")
    name = operator_name(node.target)
    plain = name.removesuffix("_") if writes(name) else name
    return NodeCall(node, plain, operands, shapes, masks, tuple(meta.shape for meta in node.outputs))


def writes(name: str) -> bool:
    """Whether an operator of that name writes to its first operand in place."""
    return name.endswith("_") and not name.startswith("__")
