"""signature: the text under which a profile keeps the cost of an operator call."""

from __future__ import annotations

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Argument, Node, Ref, Symbol, TensorMeta
from partitioner.graph.operator_classes import value_metas


def signature(graph: TracedGraph, node: Node) -> str:
    """What the cost of a node depends on, as text: operator, literals, and shapes, dtypes and strides that it reads.

    Example: "aten.add.Tensor(float32[2,96,32,32], float32[2,96,1,1]@960,1,1,1, alpha=1)". Strides (in elements)
    follow "@" unless the tensor is contiguous. Devices are left out: a profile holds for one device.
    """

    def text(argument: Argument) -> str:
        if isinstance(argument, Ref):
            metas = [_meta_text(meta) for meta in value_metas(graph, argument.name)]
            return metas[0] if len(metas) == 1 else f"({', '.join(metas)})"
        if isinstance(argument, Symbol):
            return argument.kind if argument.kind == "device" else f"{argument.kind}:{argument.value}"
        if isinstance(argument, tuple):
            return f"[{', '.join(map(text, argument))}]"
        return repr(argument)

    arguments = [text(argument) for argument in node.args]
    arguments += [f"{key}={text(argument)}" for key, argument in sorted(node.kwargs)]
    return f"{node.target}({', '.join(arguments)})"


def _meta_text(meta: TensorMeta) -> str:
    return str(meta) if _is_contiguous(meta) else f"{meta}@{','.join(map(str, meta.stride))}"


def _is_contiguous(meta: TensorMeta) -> bool:
    expected = 1
    for size, stride in zip(reversed(meta.shape), reversed(meta.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
