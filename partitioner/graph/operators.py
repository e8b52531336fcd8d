"""From the operator names and arguments in a TracedGraph to the torch operators and values that they stand for."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from partitioner.graph.constants import tensor_of
from partitioner.graph.nodes import CONSTANT, Argument, Node, Ref, Symbol, TensorData


def resolve(target: str) -> Any:
    """The operator of that name ("aten.linear.default").

    Raises:
        AttributeError: This version of torch has none.
    """
    if target == "operator.getitem":
        return operator.getitem
    if target == CONSTANT:
        return _itself
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


@lru_cache(maxsize=4096)
def is_pointwise(target: str) -> bool:
    """Whether torch says of an operator that it computes element by element.

    >>> is_pointwise("aten.silu.default"), is_pointwise("aten.softmax.int")
    (True, False)
    """
    return torch.Tag.pointwise in getattr(resolve(target), "tags", ())


def bind(argument: Argument, values: Mapping[str, Any], device: torch.device) -> Any:
    """An argument of a node as torch takes it.

    Args:
        argument: The argument as the graph has it.
        values: What its Refs stand for, by name: tensors, or nodes of a torch.fx graph.
        device: What stands for every device in it.
    """
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, Symbol):
        return device if argument.kind == "device" else getattr(torch, argument.value)
    if isinstance(argument, TensorData):
        return tensor_of(argument, device)
    if isinstance(argument, tuple):
        return [bind(item, values, device) for item in argument]
    return argument


def lowered(nodes: Sequence[Node], reads: Sequence[str], keeps: Sequence[str], device: torch.device) -> fx.GraphModule:
    """Nodes as a torch.fx module, in which the k-th node is named vk.

    Args:
        nodes: The nodes, in execution order.
        reads: Names of the values that the module takes, as positional arguments.
        keeps: Names of the values that it returns, as a tuple.
        device: Where operators that make tensors make them.
    """
    graph = fx.Graph()
    constants: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {name: graph.placeholder(f"read_{i}") for i, name in enumerate(reads)}
    for index, node in enumerate(nodes):
        args = tuple(bind(argument, values, device) for argument in node.args)
        if node.target == CONSTANT:
            constants[f"constant_{index}"] = args[0]
            values[node.name] = graph.create_node("get_attr", f"constant_{index}", name=f"v{index}")
            continue
        kwargs = {key: bind(argument, values, device) for key, argument in node.kwargs}
        values[node.name] = graph.create_node("call_function", resolve(node.target), args, kwargs, name=f"v{index}")
    graph.output(tuple(values[name] for name in keeps))
    return fx.GraphModule(constants, graph)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
