"""The traced graph as the numbers that the solver works on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from partitioner.costs.node_costs import GraphCosts
from partitioner.errors import UsageError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node, Role
from partitioner.graph.operator_classes import moves_data, operator_name
from partitioner.plan.inseparable import inseparable_pairs
from partitioner.search.arrays import Floats, Ints
from partitioner.search.problem import Problem
from partitioner.search.units import joined_units
from partitioner.staleness.flow import flow_weights

# Operators that cost little, by name: not worth a cut before them, and neither are views.
_LIGHT = {
    "to", "_to_copy", "type_as", "contiguous", "clone", "copy", "reshape", "flatten", "fill", "zeros_like", "ones_like",
    "full_like", "add", "sub", "rsub", "mul", "div", "addcmul", "lerp", "neg", "abs", "square", "pow", "sqrt", "rsqrt",
    "reciprocal", "exp", "log", "sin", "cos", "tanh", "sigmoid", "silu", "gelu", "relu", "relu6", "leaky_relu", "elu",
    "mish", "softplus", "hardswish", "hardsigmoid", "hardtanh", "clip", "clamp", "clamp_min", "clamp_max", "minimum",
    "maximum", "where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "logical_or",
    "floor", "round",
}  # fmt: skip


def build_problem(
    graph: TracedGraph,
    costs: GraphCosts,
    edge_weights: Mapping[tuple[str, str], float] | None = None,
    *,
    driver_ms: float = 0.0,
    calls: int = 1,
) -> Problem:
    """The latent nodes of ``graph`` as a Problem.

    Each parameter and each hoisted node becomes a shared item of the latent nodes that need it, directly or through
    other hoisted nodes: a timestep node costs time in every step; a prompt or constant node costs none, but what it
    keeps for the steps counts as memory. edge_weights: staleness by (producer, reader), such as EdgeErrors.weights;
    the proxy of flow.py without it. driver_ms: the pipeline's own work, as a share of each call (see Problem). calls:
    how many streams' calls are computed here in a step, each of which keeps its own prompt's values. Raises UsageError
    if a node's cost is missing, or if a weight is.
    """
    nodes = graph.latent_nodes
    missing = [node.name for node in graph.nodes if node.name not in costs.nodes]
    if missing:
        raise UsageError(
            f"the costs lack {len(missing)} of {len(graph.nodes)} nodes, such as {missing[0]}; measure again"
        )
    position = {node.name: v for v, node in enumerate(nodes)}
    values = [node for node in nodes if any(reader in position for reader in graph.readers.get(node.name, ()))]
    value_index = {node.name: u for u, node in enumerate(values)}
    edges = [(value_index[read], v) for v, node in enumerate(nodes) for read in node.reads if read in position]
    edge_value = _ints(u for u, _ in edges)
    edge_reader = _ints(v for _, v in edges)
    value_producer = _ints(position[node.name] for node in values)
    results = [position[name] for name in graph.result_values if name in position]
    if edge_weights is None:
        elements = _ints(sum(meta.numel for meta in node.outputs) for node in values)
        weights = flow_weights(
            len(nodes), value_producer[edge_value], edge_reader, elements[edge_value], _ints(sorted(set(results)))
        )
    else:
        weights = _given_weights(edge_weights, [(values[u].name, nodes[v].name) for u, v in edges])
    items = _SharedItems(graph, costs, calls)
    readings = [(item, v) for v, node in enumerate(nodes) for item in items.needed_by(node)]
    return Problem(
        names=tuple(node.name for node in nodes),
        cost_ms=np.array([costs.nodes[node.name].ms for node in nodes], dtype=np.float64),
        macs=_ints(costs.nodes[node.name].macs for node in nodes),
        activation_bytes=_activation_bytes(graph, nodes),
        # the driver's component has the last node and whatever makes a result
        together=joined_units(len(nodes), [*inseparable_pairs(nodes), [*results, len(nodes) - 1]]),
        light=np.array([_is_light(graph, node) for node in nodes], dtype=np.bool_),
        value_names=tuple(node.name for node in values),
        value_producer=value_producer,
        value_bytes=_ints(sum(meta.size_bytes for meta in node.outputs) for node in values),
        edge_value=edge_value,
        edge_reader=edge_reader,
        edge_staleness=weights,
        item_cost_ms=np.array(items.cost_ms, dtype=np.float64),
        item_macs=_ints(items.macs),
        item_bytes=_ints(items.size_bytes),
        item_parameter_bytes=_ints(items.parameter_bytes),
        reading_item=_ints(item for item, _ in readings),
        reading_node=_ints(v for _, v in readings),
        driver_ms=driver_ms,
    )


def _ints(numbers: Iterable[int]) -> Ints:
    return np.array(list(numbers), dtype=np.int64)


def _is_light(graph: TracedGraph, node: Node) -> bool:
    return operator_name(node.target).rstrip("_") in _LIGHT or not moves_data(graph, node)


def _given_weights(edge_weights: Mapping[tuple[str, str], float], edges: list[tuple[str, str]]) -> Floats:
    absent = [edge for edge in edges if edge not in edge_weights]
    if absent:
        raise UsageError(
            f"the staleness weights lack {len(absent)} of {len(edges)} edges, such as {absent[0][0]} -> "
            f"{absent[0][1]}; measure them on this graph"
        )
    return np.array([edge_weights[edge] for edge in edges], dtype=np.float64)


class _SharedItems:
    """Parameters and hoisted nodes, and which of them a node needs, directly or not."""

    def __init__(self, graph: TracedGraph, costs: GraphCosts, calls: int) -> None:
        self.cost_ms: list[float] = []
        self.macs: list[int] = []
        self.size_bytes: list[int] = []
        self.parameter_bytes: list[int] = []
        self._needs: dict[str, int] = {}  # value -> bit set of items
        placed = {node.name for node in graph.latent_nodes}
        kept = _kept_bytes(graph)
        for item in graph.inputs:
            if item.role < Role.STEP:
                self._needs[item.name] = self._add(size_bytes=calls * item.meta.size_bytes)
        for parameter in graph.parameters:
            size = parameter.meta.size_bytes
            self._needs[parameter.name] = self._add(size_bytes=size, parameter_bytes=size)
        for node in graph.nodes:
            if node.name in placed:
                continue
            cost = costs.nodes[node.name]
            each_step = node.role is Role.TIMESTEP
            size = kept.get(node.name, 0) * (calls if node.role is Role.PROMPT else 1)
            needs = self._add(cost.ms if each_step else 0.0, cost.macs if each_step else 0, size_bytes=size)
            for read in node.reads:
                needs |= self._needs[read]
            self._needs[node.name] = needs

    def _add(self, cost_ms: float = 0.0, macs: int = 0, size_bytes: int = 0, parameter_bytes: int = 0) -> int:
        self.cost_ms.append(cost_ms)
        self.macs.append(macs)
        self.size_bytes.append(size_bytes)
        self.parameter_bytes.append(parameter_bytes)
        return 1 << (len(self.cost_ms) - 1)

    def needed_by(self, node: Node) -> list[int]:
        """Items that a latent node needs, increasing."""
        needs = 0
        for read in node.reads:
            needs |= self._needs.get(read, 0)
        found = []
        while needs:
            lowest = needs & -needs
            found.append(lowest.bit_length() - 1)
            needs ^= lowest
        return found


def _storage_of(graph: TracedGraph, nodes: Iterable[Node]) -> dict[str, str]:
    """Value -> the value whose storage it is a view of, for the views among ``nodes``."""
    owner: dict[str, str] = {}
    for node in nodes:
        if node.reads and not moves_data(graph, node):
            source = node.reads[0]
            owner[node.name] = owner.get(source, source)
    return owner


def _kept_bytes(graph: TracedGraph) -> dict[str, int]:
    """Node -> bytes of what it makes once per trajectory and every step reads; a view counts as what it views."""
    once = {node.name: node for node in graph.nodes if node.role in (Role.PROMPT, Role.CONSTANT)}
    owner = _storage_of(graph, once.values())
    kept = {
        owner.get(read, read) for node in graph.nodes if node.name not in once for read in node.reads if read in once
    }
    return {name: sum(meta.size_bytes for meta in once[name].outputs) for name in kept if name in once}


def _activation_bytes(graph: TracedGraph, nodes: tuple[Node, ...]) -> Ints:
    """Of each latent node: bytes of the latent values alive while it runs, in a run of the whole graph in order."""
    owner = _storage_of(graph, nodes)
    inputs = [item for item in graph.inputs if item.role >= Role.STEP]
    size = {item.name: item.meta.size_bytes for item in inputs}
    first = {item.name: 0 for item in inputs}
    last = {item.name: 0 for item in inputs}
    for v, node in enumerate(nodes):
        if node.name not in owner:
            size[node.name] = sum(meta.size_bytes for meta in node.outputs)
            first[node.name] = last[node.name] = v
        for name in node.reads:
            storage = owner.get(name, name)
            if storage in last:
                last[storage] = v
    change = np.zeros(len(nodes) + 1, dtype=np.int64)
    for name, bytes_of in size.items():
        change[first[name]] += bytes_of
        change[last[name] + 1] -= bytes_of
    return np.cumsum(change)[:-1]
