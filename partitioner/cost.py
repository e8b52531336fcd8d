"""What every node costs: estimated by roofline from a device's data sheet, or looked up in a measured profile.

Free of torch: shapes, strides and dtypes of a TracedGraph say all that is needed. Measuring is measure.py's.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from partitioner.errors import UsageError
from partitioner.ir import DTYPE_BYTES, Argument, Node, Ref, Symbol, TensorMeta, TracedGraph
from profiles.cost_profile import CostProfile
from profiles.devices import DEFAULT_DEVICE, DeviceSpec, UnknownDeviceError, device_spec, match_device
from profiles.strict_json import JsonFileError


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Time of one call in ms, multiply-accumulates, and the bytes that it reads and writes."""

    ms: float
    macs: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class GraphCosts:
    """Costs of every node of a TracedGraph, by node name.

    source: "measured" or "roofline". covered: share of the total time that was measured (0 for a roofline).
    """

    nodes: Mapping[str, NodeCost]
    source: str
    device: str
    covered: float


_CONV = {"conv1d", "conv2d", "conv3d", "convolution", "_convolution"}
_CONV_TRANSPOSE = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_MATMUL = {"linear", "mm", "bmm", "matmul", "addmm", "baddbmm", "einsum"}
_ATTENTION = {
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
    if name in _CONV or name in _CONV_TRANSPOSE:
        return "conv"
    if name in _MATMUL:
        return "matmul"
    return "attention" if name in _ATTENTION else "memory"


def operator_name(target: str) -> str:
    """Name without namespace and overload: "aten.conv2d.default" -> "conv2d"."""
    parts = target.split(".")
    return parts[1] if len(parts) > 1 else target


def node_macs(graph: TracedGraph) -> dict[str, int]:
    """Multiply-accumulates of each node by name; 0 for operators other than products, as FlopCounterMode has it."""
    return {node.name: _macs(graph, node) for node in graph.nodes}


def estimate(graph: TracedGraph, device_name: str = DEFAULT_DEVICE) -> GraphCosts:
    """Roofline costs of every node on a known device (profiles/devices.json).

    A node takes the longer of 2·macs / (peak·efficiency of its class) and bytes / (bandwidth·efficiency). Views
    cost 0; launching kernels is not counted (DeviceSpec.launch_us is there for who wants it). float32
    convolutions run in tf32 where the device has it, float32 matmuls do not, as PyTorch's defaults have it.
    UsageError for an unknown device.
    """
    try:
        spec = device_spec(device_name)
    except UnknownDeviceError as error:
        raise UsageError(str(error)) from error
    return estimate_on(graph, spec, device_name)


def estimate_on(graph: TracedGraph, spec: DeviceSpec, device_name: str) -> GraphCosts:
    """As ``estimate``, for any data sheet."""
    return GraphCosts(
        nodes={node.name: _roofline(graph, node, spec) for node in graph.nodes},
        source="roofline",
        device=device_name,
        covered=0.0,
    )


def apply_profile(profile: CostProfile, graph: TracedGraph, device_name: str | None = None) -> GraphCosts:
    """Measured costs of a graph's nodes, looked up by signature.

    Signatures that the profile lacks get the roofline of device_name (default: the data sheet that the profile's
    device matches best), scaled for each operator class by what the covered nodes took over their roofline.
    ``covered`` of the result is the share of the total time that was looked up; where it is 0 the costs are a
    plain roofline, and labelled so.
    UsageError for an unknown device.
    """
    if device_name is None:
        device_name = "cpu" if profile.device == "cpu" else match_device(profile.device_name) or DEFAULT_DEVICE
    roofline = estimate(graph, device_name).nodes
    measured: dict[str, float] = {}
    for node in graph.nodes:
        if is_free(graph, node, profile.mode):
            measured[node.name] = 0.0
        elif (found := profile.signatures.get(signature(graph, node))) is not None:
            measured[node.name] = found.median_ms
    scales = _scales(graph, measured, roofline)
    times = {
        node.name: measured.get(node.name, roofline[node.name].ms * scales[operator_class(node.target)])
        for node in graph.nodes
    }
    total = sum(times.values())
    covered = sum(measured.values()) / total if total else 0.0
    return GraphCosts(
        nodes={name: replace(roofline[name], ms=ms) for name, ms in times.items()},
        source="measured" if covered else "roofline",
        device=profile.device_name,
        covered=covered,
    )


def _scales(
    graph: TracedGraph, measured: Mapping[str, float], roofline: Mapping[str, NodeCost]
) -> defaultdict[str, float]:
    """Operator class -> measured over estimated time of its covered nodes; for other classes that of all."""
    took: defaultdict[str, float] = defaultdict(float)
    expected: defaultdict[str, float] = defaultdict(float)
    for node in graph.nodes:
        if node.name in measured:
            kind = operator_class(node.target)
            took[kind] += measured[node.name]
            expected[kind] += roofline[node.name].ms
    all_expected = sum(expected.values())
    overall = sum(took.values()) / all_expected if all_expected else 1.0
    scales: defaultdict[str, float] = defaultdict(lambda: overall)
    scales.update({kind: took[kind] / expected[kind] for kind in took if expected[kind] and took[kind]})
    return scales


def load_profile(path: str | os.PathLike[str]) -> CostProfile:
    """CostProfile.load with a UsageError for a file that is none."""
    try:
        return CostProfile.load(path)
    except JsonFileError as error:
        raise UsageError(str(error)) from error


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


def signature(graph: TracedGraph, node: Node) -> str:
    """What decides the cost of a node, as text: target, shapes, dtypes and strides of what it reads, literals.

    Example: "aten.add.Tensor(float32[2,96,32,32], float32[2,96,1,1]@960,1,1,1, alpha=1)". Strides (in elements)
    follow "@" unless the tensor is contiguous. Devices are left out: a profile says which device it is of.
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


def _macs(graph: TracedGraph, node: Node) -> int:
    name = operator_name(node.target)
    if operator_class(node.target) == "memory":
        return 0
    if name == "einsum":
        return _einsum_macs(graph, node)
    operands = [value_metas(graph, a.name)[0] for a in node.args if isinstance(a, Ref)]
    out = node.outputs[0]
    if name in _ATTENTION:  # q: (..., tokens, d); k: (..., keys, d); scores, then their product with v
        query, key = operands[:2]
        return (query.numel + out.numel) * key.shape[-2]
    if name in _CONV_TRANSPOSE or (name in ("convolution", "_convolution") and node.args[6] is True):
        source, weight = operands[:2]  # each input element meets one input channel's filters
        return source.numel * (weight.numel // weight.shape[0])
    if name in _CONV or name == "linear":  # weight: (out, in / groups, *kernel)
        weight = operands[1]
        return out.numel * (weight.numel // weight.shape[0])
    left = operands[1] if name in ("addmm", "baddbmm") else operands[0]
    return out.numel * left.shape[-1]


def _einsum_macs(graph: TracedGraph, node: Node) -> int:
    """Product of the sizes of all indices for two operands or more; a lone operand is only permuted or summed."""
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


def _traffic(graph: TracedGraph, node: Node) -> tuple[int, int]:
    """Bytes that a node reads and writes; each distinct element of an operand counts once."""
    if not moves_data(graph, node):
        return 0, 0
    reads = node.reads[1:] if operator_name(node.target) == "copy_" else node.reads
    read = sum(_stored_bytes(meta) for name in reads for meta in value_metas(graph, name))
    return read, sum(meta.size_bytes for meta in node.outputs)


def _stored_bytes(meta: TensorMeta) -> int:
    """Size without the repeats of expanded dimensions."""
    sizes = (size for size, stride in zip(meta.shape, meta.stride, strict=True) if stride != 0)
    return math.prod(sizes) * DTYPE_BYTES[meta.dtype]


def _roofline(graph: TracedGraph, node: Node, spec: DeviceSpec) -> NodeCost:
    macs = _macs(graph, node)
    read, write = _traffic(graph, node)
    ms = (read + write) / (spec.memory_gb_per_s * spec.efficiency.memory * 1e6)
    if macs:
        kind = operator_class(node.target)
        dtype = node.outputs[0].dtype
        if dtype == "float32" and kind == "conv" and "tf32" in spec.peak_tflops:
            dtype = "tf32"
        peak = spec.peak_tflops.get(dtype, spec.peak_tflops["float32"])
        ms = max(ms, 2 * macs / (peak * getattr(spec.efficiency, kind) * 1e9))
    return NodeCost(ms=ms, macs=macs, read_bytes=read, write_bytes=write)
