"""Components: what is built of a graph and a placement computes what the module does, and names what fails."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import partitioner
from partitioner.graph.ir import TracedGraph
from partitioner.graph.operators import resolve
from partitioner.plan.program import Compute
from runtime.worker.component import Component
from runtime.worker.segment import Segment, lower
from runtime.worker.specs import build_specs
from tests.support.engines import Trajectory, contiguous, folded, toy, toy_graph

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def graph() -> TracedGraph:
    return toy_graph(toy())


def test_the_whole_graph_as_one_segment_is_the_module(graph: TracedGraph) -> None:
    denoiser, trajectory = toy(), Trajectory()
    parameters = dict(denoiser.named_parameters())
    reads = [item.name for item in graph.inputs] + [item.name for item in graph.parameters]
    module = lower(graph.nodes, reads, graph.result_values, CPU)
    inputs = trajectory.inputs(0)
    values = [inputs[item.name] for item in graph.inputs] + [parameters[item.path] for item in graph.parameters]
    with torch.no_grad():
        assert torch.equal(module(*values)[0], denoiser(**inputs)[0])


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


def test_a_component_lowers_every_compute_instruction(graph: TracedGraph) -> None:
    specs, _ = build_specs(graph, folded(graph, 2), 2)
    component = Component(specs[1], CPU)
    computes = [i for i, step in enumerate(specs[1].program.instructions) if isinstance(step, Compute)]
    assert list(component.segments) == computes
    assert len(computes) >= 2, "a fold has a piece near the input and a piece near the output"
    assert all(component.spec.wires[index].value == value for value, index in component.wire_index.items())


# ---- segments


class Mixed(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        positions = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return ((x + positions).reshape(-1, 1) @ x.new_ones(1, 2),)


def test_device_and_dtype_arguments_are_lowered_for_the_rank() -> None:
    graph = partitioner.trace(Mixed().eval(), {"x": torch.zeros(2, 3)}, {"x": "latent"})
    module = lower(graph.nodes, ["x"], graph.result_values, torch.device("meta"))
    made = module(torch.zeros(2, 3, device="meta"))[0]
    assert (made.device.type, made.dtype) == ("meta", torch.float32)


def _segment() -> tuple[Segment, TracedGraph]:
    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return ((x + 1).log().reshape(3, 2).exp(),)

    graph = partitioner.trace(Chain().eval(), {"x": torch.zeros(2, 3)}, {"x": "latent"})
    return Segment(graph.nodes, ["x"], graph.result_values, CPU), graph


def test_a_failing_node_is_named() -> None:
    segment, _ = _segment()
    values = {"x": torch.zeros(2, 5)}
    with pytest.raises(RuntimeError) as caught:
        segment(values)
    assert segment.failing_node(caught.value, values) == "/reshape.0"
    assert segment.failing_node(ValueError("from elsewhere"), values) is None


def test_the_first_node_that_makes_something_is_found() -> None:
    segment, _ = _segment()
    values = {"x": torch.full((2, 3), -2.0)}
    assert segment.first_node(values, lambda tensor: bool(tensor.isnan().any())) == "/log.0"
    assert segment.first_node(values, lambda tensor: tensor.numel() > 99) is None


def test_targets_are_found_by_name() -> None:
    assert resolve("aten.linear.default") is torch.ops.aten.linear.default
    assert resolve("operator.getitem")([4, 5], 1) == 5
    with pytest.raises(AttributeError):
        resolve("aten.no_such_operator.default")
