"""TracedGraph: order, fingerprint, printing and pickling."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from partitioner.graph.export import trace
from partitioner.graph.nodes import Ref
from tests.support.toy_denoiser import ROLES, Denoiser, inputs, traced


def test_nodes_stand_in_topological_order_and_read_known_values() -> None:
    graph = traced()
    known = {item.name for item in graph.inputs} | {item.name for item in graph.parameters}
    for node in graph.nodes:
        assert set(node.reads) <= known
        known.add(node.name)
    assert set(graph.result_values) <= known
    assert graph.readers[graph.inputs[0].name][0] in graph.node_by_name


def test_the_fingerprint_is_of_the_graph_not_of_names_or_weights() -> None:
    graph = traced()
    torch.manual_seed(1)
    assert traced(Denoiser()).fingerprint == graph.fingerprint
    assert dataclasses.replace(graph, model="another").fingerprint == graph.fingerprint
    renamed = {node.name: f"renamed_{node.name}" for node in graph.nodes}

    def rename(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return Ref(renamed.get(argument.name, argument.name))
        return tuple(map(rename, argument)) if isinstance(argument, tuple) else argument

    nodes = tuple(
        dataclasses.replace(
            node, name=renamed[node.name], args=rename(node.args), kwargs=tuple((k, rename(v)) for k, v in node.kwargs)
        )
        for node in graph.nodes
    )
    assert dataclasses.replace(graph, nodes=nodes, results=rename(graph.results)).fingerprint == graph.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(2, 4, 8, 10)},
        {"x": torch.zeros(1, 4, 8, 8), "context": torch.zeros(1, 5, 6)},
        {"scale": 2.0},
    ],
)
def test_the_fingerprint_changes_with_shapes_and_literals(change: Mapping[str, Any]) -> None:
    assert traced(**change).fingerprint != traced().fingerprint


def test_the_fingerprint_changes_with_roles_and_order() -> None:
    graph = traced()
    assert trace(Denoiser().eval(), inputs(), {**ROLES, "context": "timestep"}).fingerprint != graph.fingerprint
    first, second = graph.nodes[-2:]
    assert dataclasses.replace(graph, nodes=(*graph.nodes[:-2], second, first)).fingerprint != graph.fingerprint


def test_a_graph_prints_readably_and_pickles() -> None:
    graph = traced()
    text = str(graph)
    assert "input %x: float32[2,4,8,8] latent" in text
    assert "aten.conv2d.default(%" in text
    assert "blocks.1.conv/conv2d.0" in text
    copy = pickle.loads(pickle.dumps(graph))
    assert copy == graph
    assert copy.fingerprint == graph.fingerprint
