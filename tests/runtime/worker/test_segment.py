"""Segments: nodes that are lowered compute what the module does, and name what fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import partitioner
from partitioner.graph.ir import TracedGraph
from partitioner.graph.operators import lowered, resolve
from runtime.worker.segment import Segment
from tests.support.engines import toy_module

CPU = torch.device("cpu")


def test_the_whole_graph_as_one_segment_is_the_module() -> None:
    module, values, expected = toy_module()
    with torch.no_grad():
        assert torch.equal(module(*values)[0], expected)


class Mixed(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        positions = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return ((x + positions).reshape(-1, 1) @ x.new_ones(1, 2),)


def test_device_and_dtype_arguments_are_lowered_for_the_rank() -> None:
    graph = partitioner.trace(Mixed().eval(), {"x": torch.zeros(2, 3)}, {"x": "latent"})
    module = lowered(graph.nodes, ["x"], graph.result_values, torch.device("meta"))
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
