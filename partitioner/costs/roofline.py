"""Costs of nodes estimated by roofline from a device's data sheet.

Free of torch: shapes, strides and dtypes of a TracedGraph say all that is needed.
"""

from __future__ import annotations

import math

from partitioner.costs.macs import macs_of
from partitioner.costs.node_costs import GraphCosts, NodeCost
from partitioner.errors import UsageError
from partitioner.graph.ir import DTYPE_BYTES, Node, TensorMeta, TracedGraph
from partitioner.graph.operator_classes import moves_data, operator_class, operator_name, value_metas
from profiles.device_sheets import DEFAULT_DEVICE, DeviceSpec, UnknownDeviceError, device_spec


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
