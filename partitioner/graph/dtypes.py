"""check_dtypes: refuse a graph with a matrix product of two floating dtypes, which only a real call would refuse."""

from __future__ import annotations

from partitioner.errors import ForwardFailed
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node
from partitioner.graph.operator_classes import operator_class, value_metas


def check_dtypes(graph: TracedGraph) -> None:
    """Check that the factors of each product are of one dtype, as they are not where only the denoiser was cast.

    Raises:
        ForwardFailed: it is not; the message names the module.
    """
    for node in graph.nodes:
        if operator_class(node.target) != "matmul" or _is_outer_product(node):
            continue
        dtypes = {meta.dtype for name in node.reads for meta in value_metas(graph, name)}
        floating = sorted(dtype for dtype in dtypes if dtype.startswith(("float", "bfloat")))
        if len(floating) > 1:
            raise ForwardFailed(
                f"{graph.model} cannot run with these arguments: module {node.module or '<root>'} multiplies "
                f"{' by '.join(floating)} ({node.target}); convert the arguments or the denoiser with .to(dtype)"
            )


def _is_outer_product(node: Node) -> bool:
    """Whether a node is an einsum that sums over nothing: torch multiplies, and takes the wider dtype."""
    if "einsum" not in node.target:
        return False
    factors, arrow, result = str(node.args[0]).partition("->")
    return bool(arrow) and set(factors) - {",", " "} <= set(result)
