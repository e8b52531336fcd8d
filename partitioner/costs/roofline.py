"""estimate: costs of nodes by the roofline model, from a device's data sheet.

Free of torch: the shapes, strides and dtypes in a TracedGraph are all that is needed.
"""

from __future__ import annotations

import math

from partitioner.costs.macs import macs_of
from partitioner.costs.node_costs import GraphCosts, NodeCost
from partitioner.errors import UsageError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import DTYPE_BYTES, Node, TensorMeta
from partitioner.graph.operator_classes import moves_data, operator_class, operator_name, value_metas
from profiles.device_sheets import DEFAULT_DEVICE, DeviceSpec, UnknownDeviceError, device_spec


def estimate(graph: TracedGraph, device_name: str = DEFAULT_DEVICE) -> GraphCosts:
    """Roofline costs of every node on a known device.

    A node takes the longer of 2·macs / (peak·efficiency of its operator class) and bytes / (bandwidth·efficiency).
    Views cost 0. The host's time to launch kernels (DeviceSpec.launch_us) is not in it. float32 convolutions run in
    tf32 where the device has it, float32 products of matrices do not, as by PyTorch's defaults. A dtype that the data
    sheet has no peak for is taken for float32. A CPU's float16 peak is that of its convolutions, which have no fast
    kernels: a three-hundredth of float32.

    Args:
        graph: The graph.
        device_name: Name of a data sheet (profiles/devices.json).

    Raises:
        UsageError: No device has that name; the message names the choices.

    >>> import torch
    >>> from partitioner import trace
    >>> graph = trace(torch.nn.Linear(1024, 1024).eval(), {"input": torch.zeros(1024, 1024)}, {"input": "latent"})
    >>> cost = estimate(graph, "cpu").nodes["linear"]
    >>> f"{cost.macs / 1e9:.2f} G multiply-accumulates take {cost.ms:.1f} ms"
    '1.07 G multiply-accumulates take 21.5 ms'
    """
    try:
        spec = device_spec(device_name)
    except UnknownDeviceError as error:
        raise UsageError(str(error)) from error
    return estimate_on(graph, spec, device_name)


def estimate_on(graph: TracedGraph, spec: DeviceSpec, device_name: str) -> GraphCosts:
    """Roofline costs as ``estimate`` gives them, for a data sheet of the caller's.

    Args:
        graph: The graph.
        spec: The data sheet.
        device_name: What the device is called.
    """
    return GraphCosts(
        nodes={node.name: _roofline(graph, node, spec) for node in graph.nodes},
        source="roofline",
        device=device_name,
        covered=0.0,
    )


def _traffic(graph: TracedGraph, node: Node) -> tuple[int, int]:
    """Bytes that a node reads and writes; an element of an operand that is expanded counts once."""
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
    macs = macs_of(graph, node)
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
