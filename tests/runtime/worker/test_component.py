"""Components: what is lowered of a spec for one device."""

from __future__ import annotations

import pytest
import torch

from partitioner.graph.ir import TracedGraph
from partitioner.plan.program import Compute
from runtime.devices import capture
from runtime.errors import EngineError
from runtime.worker.component import Component
from runtime.worker.specs import build_specs
from tests.support.captured_graphs import captured_on_cpu
from tests.support.engines import folded, toy, toy_graph

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def graph() -> TracedGraph:
    return toy_graph(toy())


def test_a_component_lowers_every_compute_instruction(graph: TracedGraph) -> None:
    specs, _ = build_specs(graph, folded(graph, 2), 2)
    component = Component(specs[1], CPU)
    computes = [i for i, step in enumerate(specs[1].program.instructions) if isinstance(step, Compute)]
    assert list(component.segments) == computes
    assert len(computes) >= 2, "a fold has a piece near the input and a piece near the output"
    assert all(component.spec.wires[index].value == value for value, index in component.wire_index.items())


def test_of_evaluations_that_take_turns_only_the_first_replays_graphs(
    graph: TracedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured_on_cpu(monkeypatch)
    specs, _ = build_specs(graph, folded(graph, 2), 2)
    component = Component(specs[1], CPU, cuda_graphs=True)
    with component.evaluation() as first:
        with component.evaluation() as second, component.evaluation() as third:
            assert second is third
            assert second.segments == component.segments
        assert first.segments != component.segments
        with component.evaluation() as later:
            assert later is second
    with component.evaluation() as alone:
        assert alone is first
    plain = Component(specs[1], CPU)
    with plain.evaluation() as first:
        assert first.segments == plain.segments


def test_after_a_capture_that_could_not_be_cleaned_up_nothing_runs_on_gpus(
    graph: TracedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, _ = build_specs(graph, folded(graph, 2), 2)
    elsewhere = Component(specs[1], CPU)
    captured_on_cpu(monkeypatch)
    eager, replayed = Component(specs[1], CPU), Component(specs[1], CPU, cuda_graphs=True)
    monkeypatch.setattr(capture, "_unusable", ["start this process anew"])
    for component in (eager, replayed):
        with pytest.raises(EngineError, match="start this process anew"), component.evaluation():
            pytest.fail("it ran")
    with elsewhere.evaluation():
        pass
