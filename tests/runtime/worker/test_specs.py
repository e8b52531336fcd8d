"""Specs: what each rank is told of its component holds all that it needs, and nothing twice."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from partitioner.graph.ir import TracedGraph
from partitioner.plan.program import Compute
from runtime.worker.specs import build_specs
from tests.support.engines import contiguous, folded, toy, toy_graph


@pytest.fixture(scope="module")
def graph() -> TracedGraph:
    return toy_graph(toy())


@pytest.mark.parametrize("placed", [contiguous, folded])
@pytest.mark.parametrize("components", [1, 2, 3])
def test_every_latent_node_is_in_one_component_and_every_parameter_on_one_rank(
    graph: TracedGraph, components: int, placed: Callable[[TracedGraph, int], dict[str, int]]
) -> None:
    if components == 1 and placed is folded:
        pytest.skip("a fold needs two")
    placement = placed(graph, components)
    specs, preamble = build_specs(graph, placement, components)
    computed = [
        name for spec in specs for step in spec.program.instructions if isinstance(step, Compute) for name in step.nodes
    ]
    assert sorted(computed) == sorted(placement)
    for spec in specs:
        named = {node.name for node in spec.nodes}
        read = {value for node in spec.nodes for value in node.reads}
        assert {p.name for p in spec.parameters} == read & set(graph.parameter_by_name)
        # whatever it reads is its own, a parameter, an input, or comes in a message
        received = {step.value for step in spec.program.instructions if not isinstance(step, Compute)}
        assert read <= named | set(graph.parameter_by_name) | set(spec.program.inputs) | received
        assert spec.wires == specs[0].wires, "a wire's number means the same on every rank"
    held = [p.path for spec in specs for p in spec.parameters] + [p.path for p in preamble.parameters]
    assert sorted(held) == sorted(p.path for p in graph.parameters)


def test_a_spec_is_small_plain_data(graph: TracedGraph) -> None:
    specs, _ = build_specs(graph, contiguous(graph, 2), 2)
    data = pickle.dumps(specs[0])
    assert pickle.loads(data) == specs[0]
    assert b"torch" not in data
    assert len(data) < 40_000
