"""Calls of single operators on random tensors of the shapes, strides and dtypes that a node reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from partitioner.costs.random_tensors import random_value
from partitioner.errors import MeasureError, first_line
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node, Role
from partitioner.graph.operators import bind, lowered, resolve


@dataclass(frozen=True)
class Call:
    """An operator with random arguments.

    Attributes:
        node: The node whose operator it is.
        function: The operator, or what torch.compile made of it; args and kwargs are its arguments.
        fresh: Those of the arguments that a real step has just computed when it makes this call.
    """

    node: Node
    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    fresh: list[torch.Tensor]

    def run(self) -> Any:
        """Make the call; returns what the operator does."""
        return self.function(*self.args, **self.kwargs)

    def touch(self) -> None:
        """Bring what a real step would just have computed into the cache."""
        for tensor in self.fresh:
            tensor.sum() if tensor.dtype.itemsize > 1 else tensor.clone()  # 8-bit floats have no sum


def make_call(
    graph: TracedGraph,
    node: Node,
    device: torch.device,
    fresh: dict[str, Any],
    compiled: Callable[..., Any] | None = None,
) -> Call:
    """A call of a node's operator on random tensors.

    Args:
        graph: The graph that the node is of.
        node: The node.
        device: Where the tensors are made.
        fresh: Latent values made so far, by name; taken from there, and added to it where they are missing.
        compiled: What compiled_node made of the operator, to be called instead of it.
    """
    values: dict[str, Any] = {}
    for name in node.reads:
        if name not in fresh:
            values[name] = random_value(graph, name, device)
            if _role(graph, name) >= Role.STEP:
                fresh[name] = values[name]
        else:
            values[name] = fresh[name]
    return Call(
        node=node,
        function=compiled or resolve(node.target),
        args=[values[name] for name in _distinct(node.reads)]
        if compiled
        else [bind(a, values, device) for a in node.args],
        kwargs={} if compiled else {key: bind(argument, values, device) for key, argument in node.kwargs},
        fresh=[values[n] for n in node.reads if n in fresh and isinstance(values[n], torch.Tensor)],
    )


def compiled_node(node: Node, device: torch.device) -> Callable[..., Any]:
    """One operator compiled by torch.compile, as a function of the values that the node reads.

    Its first call takes seconds. Every one has a code object of its own, for torch compiles the same one a few times
    only.
    """
    run: Callable[..., Any] = torch.compile(
        lowered([node], _distinct(node.reads), [node.name], device).forward, dynamic=False
    )
    return run


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _role(graph: TracedGraph, name: str) -> Role:
    if name in graph.node_by_name:
        return graph.node_by_name[name].role
    return graph.input_by_name[name].role if name in graph.input_by_name else Role.CONSTANT


def first_run(call: Call, device: torch.device) -> None:
    """Make a call for the first time: code is loaded, kernels are chosen.

    Raises:
        MeasureError: The device does not support the operator.
    """
    node = call.node
    try:
        call.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except (RuntimeError, NotImplementedError) as error:
        dtypes = ", ".join(dict.fromkeys(meta.dtype for meta in node.outputs))
        raise MeasureError(
            f"{node.key} ({node.target}, {dtypes}) does not run on {device}: {first_line(error)}; measure in "
            "another dtype or on another device, or use a roofline estimate"
        ) from error
