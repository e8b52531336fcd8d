"""From the names and arguments in a TracedGraph to the torch operators and values that they stand for."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from partitioner.graph.ir import Argument, Node, Ref, Symbol


def resolve(target: str) -> Any:
    """ "aten.linear.default" -> the operator; AttributeError where this torch has none of that name."""
    if target == "operator.getitem":
        return operator.getitem
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def bind(argument: Argument, values: Mapping[str, Any], device: torch.device) -> Any:
    """An argument of a node with its Refs looked up in ``values`` and its devices replaced by ``device``.

    values: tensors, or what stands for them in a torch.fx graph.
    """
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, Symbol):
        return device if argument.kind == "device" else getattr(torch, argument.value)
    if isinstance(argument, tuple):
        return [bind(item, values, device) for item in argument]
    return argument


def lowered(nodes: Sequence[Node], reads: Sequence[str], keeps: Sequence[str], device: torch.device) -> fx.GraphModule:
    """Nodes as a module of the positional inputs ``reads`` that returns the tuple ``keeps``."""
    graph = fx.Graph()
    values: dict[str, Any] = {name: graph.placeholder(f"read_{i}") for i, name in enumerate(reads)}
    for node in nodes:
        values[node.name] = graph.call_function(
            resolve(node.target),
            tuple(bind(argument, values, device) for argument in node.args),
            {key: bind(argument, values, device) for key, argument in node.kwargs},
        )
    graph.output(tuple(values[name] for name in keeps))
    return fx.GraphModule({}, graph)
