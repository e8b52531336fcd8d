"""call_of: runs some nodes of a traced graph on random values."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch

from partitioner.costs.random_tensors import random_value
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node
from runtime.worker.segment import lower

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


def call_of(
    graph: TracedGraph, nodes: Sequence[Node], device: torch.device, compiler: Compiler | None = None
) -> Callable[[], Any]:
    """A function that runs some nodes of a graph; what they read from other nodes is random.

    Args:
        graph: the graph.
        nodes: what to run, in order.
        device: where.
        compiler: makes the function that is run of the nodes'; None: it is run as it is.
    """
    made = {node.name for node in nodes}
    reads = list(dict.fromkeys(name for node in nodes for name in node.reads if name not in made))
    results = set(graph.result_values)
    keeps = [
        node.name
        for node in nodes
        if node.name in results or any(reader not in made for reader in graph.readers.get(node.name, ()))
    ]
    module = lower(nodes, reads, keeps, device)
    values = [random_value(graph, name, device) for name in reads]
    run = compiler(module.forward) if compiler else module
    return lambda: run(*values)


def free() -> None:
    """Return unused cached memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
