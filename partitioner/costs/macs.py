"""macs_of: how many multiply-accumulates a node does, from the shapes that it reads."""

from __future__ import annotations

import math

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node, Ref
from partitioner.graph.operator_classes import (
    ATTENTION,
    CONV,
    CONV_TRANSPOSE,
    operator_class,
    operator_name,
    value_metas,
)


def macs_of(graph: TracedGraph, node: Node) -> int:
    """Multiply-accumulates of a node: of products of matrices, convolutions and attention; 0 for all other operators.

    The numbers are those of torch.utils.flop_counter.FlopCounterMode, which counts two operations for each.
    """
    name = operator_name(node.target)
    if operator_class(node.target) == "memory":
        return 0
    if name == "einsum":
        return _einsum_macs(graph, node)
    operands = [value_metas(graph, a.name)[0] for a in node.args if isinstance(a, Ref)]
    out = node.outputs[0]
    if name in ATTENTION:  # q: (..., tokens, d); k: (..., keys, d); scores, then their product with v
        query, key = operands[:2]
        return (query.numel + out.numel) * key.shape[-2]
    if name in CONV_TRANSPOSE or (name in ("convolution", "_convolution") and node.args[6] is True):
        source, weight = operands[:2]  # each input element meets one input channel's filters
        return source.numel * (weight.numel // weight.shape[0])
    if name in CONV or name == "linear":  # weight: (out, in / groups, *kernel)
        weight = operands[1]
        return out.numel * (weight.numel // weight.shape[0])
    left = operands[1] if name in ("addmm", "baddbmm") else operands[0]
    return out.numel * left.shape[-1]


def _einsum_macs(graph: TracedGraph, node: Node) -> int:
    """Product of the sizes of all indices; 0 for a single operand, which is only permuted or summed."""
    operands = [value_metas(graph, name)[0] for name in node.reads]
    if len(operands) < 2:
        return 0
    terms = str(node.args[0]).replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        head, _, tail = term.partition("...")
        hidden = len(operand.shape) - len(head) - len(tail)
        labels = [*head, *(f"...{hidden - k}" for k in range(hidden)), *tail]
        for label, size in zip(labels, operand.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())
