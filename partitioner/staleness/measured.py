"""Measured staleness: what a real denoiser's output suffers where a node reads the value of the step before.

To first order the error of one-step lag is the sum over the cut edges u -> v of J_uv (y_u(t-1) - y_u(t)), where J_uv is
the derivative of the output by what v reads of u. It is sketched: for random probes p of the output's shape, each
edge's p . J_uv (y_u(t-1) - y_u(t)) comes from one vector-Jacobian product for all edges at once, over consecutive steps
of an exact trajectory. Sketches of edges add like the errors do, and their norms estimate the errors' norms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from partitioner.errors import UsageError
from partitioner.graph.arguments import flatten_arguments
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node
from partitioner.graph.operators import bind, resolve
from partitioner.staleness.edge_errors import EdgeErrors, NamedEdge

PROBES = 32
TensorsByPath = Mapping[str, torch.Tensor]
ReadHook = Callable[[str, str, Any], Any]  # (reader, value's name, value) -> what it reads instead


def measure_module_edge_errors(
    module: nn.Module, graph: TracedGraph, calls: Sequence[Mapping[str, Any]], *, probes: int = PROBES
) -> EdgeErrors:
    """Sketch every edge's error of a denoiser with real weights; see measure_edge_errors.

    graph: of the module. calls: the arguments of consecutive calls of an exact trajectory, as it was traced with.
    """
    state: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    state.update(module.named_buffers(remove_duplicate=False))
    steps = [flatten_arguments(call).tensors for call in calls]
    for number, step in enumerate(steps):
        for item in graph.inputs:
            found = step.get(item.name)
            if found is None or tuple(found.shape) != item.meta.shape:
                raise UsageError(
                    f"call {number} of the trajectory: {item.name} is "
                    f"{'missing' if found is None else list(found.shape)}; expected {list(item.meta.shape)}, as traced"
                )
    return measure_edge_errors(graph, state, steps, probes=probes)


def measure_edge_errors(
    graph: TracedGraph,
    parameters: TensorsByPath,
    trajectory: Sequence[TensorsByPath],
    *,
    probes: int = PROBES,
    seed: int = 0,
) -> EdgeErrors:
    """Sketch every edge's error.

    parameters: by path in the module's state, as graph.parameters has them. trajectory: the tensor inputs, by path, of
    consecutive steps of an exact trajectory (two or more). Takes probes backward passes for each step but the first.
    Edges of nodes that share written storage and of operators with several outputs, which are never cut, weigh 0.
    """
    if len(trajectory) < 2 or probes < 1:
        raise UsageError(f"two steps and one probe are needed at least; got {len(trajectory)} and {probes}")
    placed = {node.name: node for node in graph.latent_nodes}
    edges = tuple((read, node.name) for node in graph.latent_nodes for read in node.reads if read in placed)
    free = [(u, v) for u, v in edges if placed[u].group < 0 and len(placed[u].outputs) == 1]
    generator = torch.Generator().manual_seed(seed)
    sketches = np.zeros((len(edges), probes, len(trajectory) - 1))
    row = {edge: i for i, edge in enumerate(edges)}
    with torch.no_grad():
        before = evaluate_graph(graph, parameters, trajectory[0])
    for step, inputs in enumerate(trajectory[1:]):
        offsets: dict[NamedEdge, torch.Tensor] = {}

        def offset(reader: str, name: str, value: Any, offsets: dict[NamedEdge, torch.Tensor] = offsets) -> Any:
            if (name, reader) not in row or not isinstance(value, torch.Tensor) or placed[name].group >= 0:
                return value
            if not value.is_floating_point():
                return value
            offsets[name, reader] = torch.zeros_like(value, requires_grad=True)
            return value + offsets[name, reader]

        with torch.enable_grad():
            now = evaluate_graph(graph, parameters, inputs, offset)
            output = torch.cat([now[name].flatten() for name in graph.result_values])
            used = [edge for edge in free if edge in offsets]
            lags = [(before[u] - now[u]).detach().double() for u, _ in used]
            for probe in range(probes):
                direction = torch.randn(output.shape, generator=generator).to(output)
                gradients = torch.autograd.grad(
                    output, [offsets[edge] for edge in used], direction, retain_graph=True, allow_unused=True
                )
                for edge, gradient, lag in zip(used, gradients, lags, strict=True):
                    if gradient is not None:
                        sketches[row[edge], probe, step] = float((gradient.double() * lag).sum())
        before = {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in now.items()}
    scaled = sketches.reshape(len(edges), -1) / np.sqrt(probes * (len(trajectory) - 1))
    return EdgeErrors(edges, scaled)


def evaluate_graph(
    graph: TracedGraph, parameters: TensorsByPath, inputs: TensorsByPath, read: ReadHook | None = None
) -> dict[str, Any]:
    """Value of every node by name, computed node by node. read: may replace what a node reads."""
    values: dict[str, Any] = {item.name: inputs[item.name] for item in graph.inputs}
    values |= {item.name: parameters[item.path] for item in graph.parameters}
    device = next(iter(inputs.values())).device
    for node in graph.nodes:
        seen = values if read is None else {name: read(node.name, name, values[name]) for name in node.reads}
        values[node.name] = _call(node, seen, device)
    return values


def _call(node: Node, values: Mapping[str, Any], device: torch.device) -> Any:
    arguments = [bind(argument, values, device) for argument in node.args]
    return resolve(node.target)(*arguments, **{key: bind(item, values, device) for key, item in node.kwargs})
