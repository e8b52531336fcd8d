"""TracedGraph.to_networkx: a DAG of inputs and operators with what an analysis needs as attributes."""

from __future__ import annotations

import networkx
import pytest
import torch
from torch import nn

from partitioner.costs.roofline import estimate
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph


class Forked(nn.Module):
    """Two paths of different cost, a timestep, and an operator with several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.narrow = nn.Linear(8, 8)
        self.wide = nn.Sequential(nn.Linear(8, 512), nn.Linear(512, 8))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        first, second = (sample * self.embed(timestep[:, None])).chunk(2, dim=0)
        return torch.relu(self.narrow(first)) + self.wide(second)


@pytest.fixture(scope="module")
def graph() -> TracedGraph:
    inputs = {"sample": torch.zeros(4, 8), "timestep": torch.zeros(4)}
    return trace(Forked().eval(), inputs, {"sample": "latent", "timestep": "timestep"}, model="forked")


def test_a_dag_of_inputs_and_operators_in_execution_order(graph: TracedGraph) -> None:
    dag = graph.to_networkx()
    assert networkx.is_directed_acyclic_graph(dag)
    assert dag.graph == {"model": "forked"}
    assert list(dag) == [item.name for item in graph.inputs] + [node.name for node in graph.nodes]
    assert set(dag.edges) == {
        (name, node.name) for node in graph.nodes for name in node.reads if name not in graph.parameter_by_name
    }


def test_attributes(graph: TracedGraph) -> None:
    dag = graph.to_networkx()
    assert dag.nodes["sample"] == {
        "kind": "input",
        "op": "input",
        "module": "",
        "key": "sample",
        "role": "latent",
        "shape": (4, 8),
        "dtype": "float32",
        "size_bytes": 4 * 8 * 4,
        "parameter_bytes": 0,
    }
    (narrow,) = [node for node in graph.nodes if node.module == "narrow"]
    assert dag.nodes[narrow.name] == {
        "kind": "operator",
        "op": "aten.linear.default",
        "module": "narrow",
        "key": "narrow/linear.0",
        "role": "latent",
        "shape": (2, 8),
        "dtype": "float32",
        "size_bytes": 2 * 8 * 4,
        "parameter_bytes": (8 * 8 + 8) * 4,
    }
    (chunk,) = [node for node in graph.nodes if ".chunk." in node.target or ".split." in node.target]
    assert (dag.nodes[chunk.name]["shape"], dag.nodes[chunk.name]["size_bytes"]) == ((2, 8), 4 * 8 * 4)
    assert {dag.nodes[node.name]["role"] for node in graph.nodes if node.module == "embed"} == {"timestep"}
    for u, _, size_bytes in dag.edges(data="size_bytes"):
        assert size_bytes == dag.nodes[u]["size_bytes"]
    assert not any("cost_ms" in attributes or "component" in attributes for _, attributes in dag.nodes(data=True))


def test_the_longest_path_by_cost_is_the_critical_path(graph: TracedGraph) -> None:
    costs = estimate(graph, "cpu")
    dag = graph.to_networkx(costs)
    for node in graph.nodes:
        assert dag.nodes[node.name]["cost_ms"] == costs.nodes[node.name].ms
    path = networkx.dag_longest_path(dag, weight="cost_ms")
    modules = [dag.nodes[name]["module"] for name in path]
    assert "wide.0" in modules
    assert "wide.1" in modules
    assert "narrow" not in modules
    assert path[-1] in graph.result_values
    assert networkx.dag_longest_path_length(dag, weight="cost_ms") == pytest.approx(
        sum(dag.nodes[name]["cost_ms"] for name in path)
    )


def test_components_by_node_name_or_by_node_key(graph: TracedGraph) -> None:
    by_name = {node.name: number % 2 for number, node in enumerate(graph.latent_nodes)}
    by_key = {node.key: by_name[node.name] for node in graph.latent_nodes}
    for placement in (by_name, by_key):
        dag = graph.to_networkx(placement=placement)
        assert networkx.get_node_attributes(dag, "component") == by_name
