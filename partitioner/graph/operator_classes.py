"""Operators by what they do to data: compute-bound classes, views, casts. Free of torch."""

from __future__ import annotations

from partitioner.graph.ir import Node, TensorMeta, TracedGraph

CONV = {"conv1d", "conv2d", "conv3d", "convolution", "_convolution"}
CONV_TRANSPOSE = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_MATMUL = {"linear", "mm", "bmm", "matmul", "addmm", "baddbmm", "einsum"}
ATTENTION = {
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu",
}  # fmt: skip

# Operators that hand out the same storage under another shape, or storage that nobody has filled.
_VIEWS = {
    "getitem", "view", "transpose", "permute", "unsqueeze", "squeeze", "expand", "expand_as", "broadcast_to", "slice",
    "select", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "unflatten", "t", "numpy_T",
    "movedim", "swapaxes", "swapdims", "diagonal", "unfold", "as_strided", "view_as", "view_as_real",
    "view_as_complex", "real", "imag", "detach", "alias", "_unsafe_view", "empty", "empty_like", "new_empty",
    "empty_strided", "empty_permuted",
}  # fmt: skip
_RESHAPES = {"reshape", "flatten", "reshape_as"}  # a view where strides allow it, else a copy
_CASTS = {"to", "type_as", "contiguous", "float", "half", "_to_copy"}  # their argument itself where it fits already


def operator_class(target: str) -> str:
    """'conv', 'matmul', 'attention' (compute-bound) or 'memory' (the rest): "aten.conv2d.default" -> 'conv'."""
    name = operator_name(target)
    if name in CONV or name in CONV_TRANSPOSE:
        return "conv"
    if name in _MATMUL:
        return "matmul"
    return "attention" if name in ATTENTION else "memory"


def operator_name(target: str) -> str:
    """Name without namespace and overload: "aten.conv2d.default" -> "conv2d"."""
    parts = target.split(".")
    return parts[1] if len(parts) > 1 else target


def moves_data(graph: TracedGraph, node: Node) -> bool:
    """False for a node that only relabels storage (a view, a cast to what it is already)."""
    name = operator_name(node.target)
    if name in _VIEWS:
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
    """Whether a node costs nothing: taking an item of a tuple; but for eager mode, also all that moves no data."""
    return node.target == "operator.getitem" or (mode != "eager" and not moves_data(graph, node))


def value_metas(graph: TracedGraph, name: str) -> tuple[TensorMeta, ...]:
    """The tensors that a value (input, parameter or node) stands for."""
    if name in graph.node_by_name:
        return graph.node_by_name[name].outputs
    if name in graph.parameter_by_name:
        return (graph.parameter_by_name[name].meta,)
    return (graph.input_by_name[name].meta,)


def _is_viewable(source: TensorMeta, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can be seen in another shape without a copy.

    Neighbouring dimensions with stride[i] = size[i+1]·stride[i+1] merge to one run; the new shape must cut at
    every border between runs.
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
