"""Operators by what they do to data: products, views, reshapes, casts. Free of torch."""

from __future__ import annotations

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import CONSTANT, Node, TensorMeta

CONV = {"conv1d", "conv2d", "conv3d", "convolution", "_convolution"}
CONV_TRANSPOSE = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_MATMUL = {"linear", "mm", "bmm", "matmul", "addmm", "baddbmm", "einsum"}
ATTENTION = {
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu",
}  # fmt: skip

# Operators that return the storage of their argument under another shape, or storage that is not filled.
_VIEWS = {
    "getitem", "view", "transpose", "permute", "unsqueeze", "squeeze", "expand", "expand_as", "broadcast_to", "slice",
    "select", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "unflatten", "t", "numpy_T",
    "movedim", "swapaxes", "swapdims", "diagonal", "unfold", "as_strided", "view_as", "view_as_real",
    "view_as_complex", "real", "imag", "detach", "alias", "_unsafe_view", "empty", "empty_like", "new_empty",
    "empty_strided", "empty_permuted",
}  # fmt: skip
_RESHAPES = {"reshape", "flatten", "reshape_as"}  # a view where strides allow it, else a copy
_CASTS = {"to", "type_as", "contiguous", "float", "half", "_to_copy"}  # their argument itself where it need not change


def operator_class(target: str) -> str:
    """The class that an operator's efficiency is known by: 'conv', 'matmul' or 'attention'; 'memory' for all others.

    >>> operator_class("aten.conv2d.default"), operator_class("aten.silu.default")
    ('conv', 'memory')
    """
    name = operator_name(target)
    if name in CONV or name in CONV_TRANSPOSE:
        return "conv"
    if name in _MATMUL:
        return "matmul"
    return "attention" if name in ATTENTION else "memory"


def operator_name(target: str) -> str:
    """An operator's name without namespace and overload.

    >>> operator_name("aten.add.Tensor")
    'add'
    """
    parts = target.split(".")
    return parts[1] if len(parts) > 1 else target


def moves_data(graph: TracedGraph, node: Node) -> bool:
    """Whether a node reads or writes elements; a view does not, nor a cast to the dtype that is there already."""
    name = operator_name(node.target)
    if name in _VIEWS or node.target == CONSTANT:
        return False
    if name == "einsum":
        return len(node.reads) > 1  # of one operand it is a permutation
    if name in _RESHAPES or name in _CASTS:
        (source,) = value_metas(graph, node.reads[0])
        if name in _RESHAPES:
            return not _is_viewable(source, node.meta.shape)
        return source != node.meta
    return True


def is_free(graph: TracedGraph, node: Node, mode: str) -> bool:
    """Whether a node costs nothing: an item of a tuple, a constant; in other modes than eager, what moves no data."""
    return node.target in ("operator.getitem", CONSTANT) or (mode != "eager" and not moves_data(graph, node))


def value_metas(graph: TracedGraph, name: str) -> tuple[TensorMeta, ...]:
    """Shapes, strides and dtypes of a value (input, parameter or node): one, or as many as its node has outputs."""
    if name in graph.node_by_name:
        return graph.node_by_name[name].outputs
    if name in graph.parameter_by_name:
        return (graph.parameter_by_name[name].meta,)
    return (graph.input_by_name[name].meta,)


def _is_viewable(source: TensorMeta, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can be reshaped without a copy.

    Neighbouring dimensions with stride[i] = size[i+1]·stride[i+1] lie in memory as one run. There is no copy where no
    dimension of the new shape reaches across a border between two runs.
    """
    if source.numel == 0:
        return True
    runs: list[int] = []
    previous: tuple[int, int] | None = None  # size and stride of the dimension to the right
    for size, stride in zip(reversed(source.shape), reversed(source.stride), strict=True):
        if size == 1:
            continue
        if previous is not None and stride == previous[0] * previous[1]:
            runs[-1] *= size
        else:
            runs.append(size)
        previous = (size, stride)
    borders = set()
    elements = 1
    for run in runs[:-1]:
        elements *= run
        borders.add(elements)
    elements = 1
    for size in reversed(shape):
        elements *= size
        borders.discard(elements)
    return not borders
