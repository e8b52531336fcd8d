"""A traced denoiser as the right numbers: what is placed, what each component has for itself, what is not cut."""

from __future__ import annotations

import itertools

import networkx
import numpy as np
import pytest
import torch
from torch import nn

from partitioner.costs.node_costs import GraphCosts
from partitioner.costs.roofline import estimate
from partitioner.errors import UsageError
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from partitioner.planning.build_problem import build_problem
from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate


class Block(nn.Module):
    """Modulated by the timestep, attends to the prompt; its own parameters, but the projection is shared."""

    def __init__(self, shared: nn.Linear) -> None:
        super().__init__()
        self.modulate = nn.Linear(8, 32)
        self.key = nn.Linear(6, 16)
        self.shared = shared
        self.inner = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulate(t).chunk(2, dim=-1)
        first, second = self.shared(x * (1 + scale) + shift).chunk(2, dim=-1)
        hidden = self.inner(torch.nn.functional.silu(first) * second)
        return x + torch.softmax(hidden @ self.key(prompt).transpose(-1, -2), dim=-1) @ self.key(prompt)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(16, 32)
        self.embed = nn.Linear(1, 8)
        self.blocks = nn.ModuleList(Block(shared) for _ in range(3))
        self.out = nn.Linear(16, 16)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        t = self.embed(timestep[:, None])
        x = sample
        for block in self.blocks:
            x = block(x, t[:, None], prompt)
        x = x.clone()
        x[:, 0].mul_(0.5)  # written in place: one unit
        return self.out(x)


@pytest.fixture(scope="module")
def graph() -> TracedGraph:
    inputs = {"sample": torch.zeros(2, 5, 16), "timestep": torch.zeros(2), "prompt": torch.zeros(2, 4, 6)}
    return trace(Toy().eval(), inputs, {"sample": "latent", "timestep": "timestep", "prompt": "prompt"})


@pytest.fixture(scope="module")
def costs(graph: TracedGraph) -> GraphCosts:
    return estimate(graph)


def _latent_dag(graph: TracedGraph) -> networkx.DiGraph:
    return graph.to_networkx().subgraph(node.name for node in graph.latent_nodes)


def test_latent_nodes_are_placed_with_their_costs(graph: TracedGraph, costs: GraphCosts) -> None:
    problem = build_problem(graph, costs)
    assert problem.names == tuple(node.name for node in graph.nodes if node.role is Role.LATENT)
    for v, name in enumerate(problem.names):
        assert problem.cost_ms[v] == costs.nodes[name].ms
        assert problem.macs[v] == costs.nodes[name].macs


def test_edges_are_those_of_the_dag(graph: TracedGraph, costs: GraphCosts) -> None:
    problem = build_problem(graph, costs)
    made = _latent_dag(graph)
    assert networkx.is_directed_acyclic_graph(made)
    edges = zip(problem.edge_producer.tolist(), problem.edge_reader.tolist(), strict=True)
    assert {(problem.names[u], problem.names[v]) for u, v in edges} == set(made.edges)
    for u, name in enumerate(problem.value_names):
        for _, _, size_bytes in made.out_edges(name, data="size_bytes"):
            assert size_bytes == problem.value_bytes[u]


def test_one_component_has_every_parameter_and_hoisted_node_once(graph: TracedGraph, costs: GraphCosts) -> None:
    problem = build_problem(graph, costs)
    figures = evaluate(problem, [0] * problem.size, Devices.equal(1), "async")
    assert figures.components[0].parameter_bytes == sum(p.meta.size_bytes for p in graph.parameters)
    each_step = [node for node in graph.nodes if node.role in (Role.LATENT, Role.TIMESTEP)]
    assert figures.components[0].load_ms == pytest.approx(sum(costs.nodes[node.name].ms for node in each_step))
    assert figures.components[0].macs == sum(costs.nodes[node.name].macs for node in each_step)


def test_what_two_components_read_is_on_both(graph: TracedGraph, costs: GraphCosts) -> None:
    """Closed sets found by walking the graph back from each component's nodes."""
    problem = build_problem(graph, costs)
    border = next(v for v, name in enumerate(problem.names) if "blocks.1" in graph.node_by_name[name].module)
    figures = evaluate(problem, [0] * border + [1] * (problem.size - border), Devices.equal(2), "async")
    placed = set(problem.names)
    for component, names in zip(figures.components, (problem.names[:border], problem.names[border:]), strict=True):
        needed: set[str] = set()
        waiting = list(itertools.chain.from_iterable(graph.node_by_name[name].reads for name in names))
        while waiting:
            name = waiting.pop()
            if name in placed or name in needed:
                continue
            needed.add(name)
            if name in graph.node_by_name:
                waiting += graph.node_by_name[name].reads
        parameters = [graph.parameter_by_name[name] for name in needed if name in graph.parameter_by_name]
        assert component.parameter_bytes == sum(p.meta.size_bytes for p in parameters)
        steps = [n for n in needed if n in graph.node_by_name and graph.node_by_name[n].role is Role.TIMESTEP]
        assert component.load_ms == pytest.approx(sum(costs.nodes[name].ms for name in [*names, *steps]))
    shared = {p.path: p.meta.size_bytes for p in graph.parameters if "shared" in p.path or "embed" in p.path}
    both = sum(c.parameter_bytes for c in figures.components) - sum(p.meta.size_bytes for p in graph.parameters)
    assert both == sum(shared.values())


def test_what_the_prompt_makes_is_held_in_memory_and_costs_no_step(graph: TracedGraph, costs: GraphCosts) -> None:
    problem = build_problem(graph, costs)
    figures = evaluate(problem, [0] * problem.size, Devices.equal(1), "async").components[0]
    kept = 2 * 4 * 16 * 4  # one block's keys, read by its attention as they are and transposed
    inputs = 2 * 4 + 2 * 4 * 6 * 4
    parameters = sum(p.meta.size_bytes for p in graph.parameters)
    held = int(problem.item_bytes.sum()) - parameters - inputs
    assert held >= 2 * 3 * kept
    assert figures.memory_bytes == int(problem.item_bytes.sum()) + int(problem.activation_bytes.max())


def test_activations_are_what_is_alive(graph: TracedGraph, costs: GraphCosts) -> None:
    problem = build_problem(graph, costs)
    x = 2 * 5 * 16 * 4
    assert x <= problem.activation_bytes.min()
    first = next(v for v, name in enumerate(problem.names) if graph.node_by_name[name].target == "aten.mul.Tensor")
    assert problem.activation_bytes[first] == 2 * x  # the sample, still needed by the residual, and the product


def test_units(graph: TracedGraph, costs: GraphCosts) -> None:
    problem = build_problem(graph, costs)
    units = [{graph.node_by_name[problem.names[v]].target for v in members} for members in problem.units.values()]
    assert units.count({"aten.chunk.default", "operator.getitem"}) == 3
    written = [unit for unit in units if "aten.clone.default" in unit]
    assert len(written) == 1
    assert any(target.endswith("_") or "_." in target for target in written[0])


def test_the_driver_owns_the_result(graph: TracedGraph, costs: GraphCosts) -> None:
    problem = build_problem(graph, costs)
    assert problem.names[-1] in graph.result_values


def test_given_weights_replace_the_proxy(graph: TracedGraph, costs: GraphCosts) -> None:
    edges = list(_latent_dag(graph).edges)
    weights = {edge: float(number) for number, edge in enumerate(edges)}
    problem = build_problem(graph, costs, weights)
    assert problem.edge_staleness.sum() == sum(weights.values())
    del weights[edges[0]]
    with pytest.raises(UsageError, match=f"lack 1 of .*{edges[0][0]} -> {edges[0][1]}"):
        build_problem(graph, costs, weights)


def test_missing_costs_are_said(graph: TracedGraph, costs: GraphCosts) -> None:
    name = graph.nodes[3].name
    short = GraphCosts({k: c for k, c in costs.nodes.items() if k != name}, "roofline", "h200", 0.0)
    with pytest.raises(UsageError, match=f"lack 1 of .*{name}"):
        build_problem(graph, short)


def test_every_full_cut_of_the_proxy_weighs_one(graph: TracedGraph, costs: GraphCosts) -> None:
    """The influence that flows back from the output is conserved: any prefix of the nodes is left by all of it."""
    problem = build_problem(graph, costs)
    reads_sample = next(v for v, name in enumerate(problem.names) if "sample" not in graph.node_by_name[name].reads)
    for border in range(1, problem.size):
        crossing = (problem.edge_producer < border) & (problem.edge_reader >= border)
        weight = problem.edge_staleness[crossing].sum()
        fresh = any("sample" in graph.node_by_name[name].reads for name in problem.names[border:])
        assert weight <= 1 + 1e-9
        if not fresh and border >= reads_sample:
            assert weight == pytest.approx(1.0)
    assert np.all(problem.edge_staleness >= 0)
