"""Rooflines as a hand computes them from shapes and a data sheet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from partitioner.costs.roofline import estimate
from partitioner.errors import UsageError
from partitioner.graph.export import fake_mode, trace
from partitioner.graph.operator_classes import moves_data
from profiles.device_sheets import device_spec, device_specs
from tests.support.graphs import full_graph, small_graph


@pytest.mark.slow
@pytest.mark.parametrize("device", device_specs())
def test_every_node_of_a_large_model_has_a_sane_cost(device: str) -> None:
    graph = full_graph("sdxl")
    costs = estimate(graph, device)
    assert costs.source == "roofline"
    assert costs.device == device
    assert costs.covered == 0
    assert list(costs.nodes) == [node.name for node in graph.nodes]
    assert costs == estimate(graph, device)
    for node in graph.nodes:
        cost = costs.nodes[node.name]
        if moves_data(graph, node):
            assert 0 < cost.ms < 0.1 * sum(c.ms for c in costs.nodes.values())
            assert cost.write_bytes == sum(meta.size_bytes for meta in node.outputs) > 0
        else:
            assert (cost.ms, cost.macs, cost.read_bytes, cost.write_bytes) == (0, 0, 0, 0)


def test_roofline_is_the_longer_of_compute_and_memory() -> None:
    """On an A5000: a large product by its peak, a thin one and an addition by memory."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large = nn.Linear(4096, 4096, bias=False, dtype=torch.float16)
            self.thin = nn.Linear(4096, 1, bias=False, dtype=torch.float16)

        def forward(self, x: torch.Tensor) -> Any:
            return self.large(x), self.thin(x), x + 1

    with fake_mode():
        graph = trace(Three().eval(), {"x": torch.zeros(4096, 4096, dtype=torch.float16)}, {"x": "latent"})
    large, thin, add = (estimate(graph, "a5000").nodes[node.name] for node in graph.nodes)
    spec = device_spec("a5000")
    memory = 768e6 * spec.efficiency.memory  # bytes per ms
    assert large.macs == 4096**3
    assert large.ms == pytest.approx(2 * 4096**3 / (111.1e9 * spec.efficiency.matmul))
    assert (thin.read_bytes, thin.write_bytes) == (2 * (4096**2 + 4096), 2 * 4096)
    assert thin.ms == pytest.approx((thin.read_bytes + thin.write_bytes) / memory)
    assert add.ms == pytest.approx(4 * 4096**2 / memory)


def test_float32_convolutions_use_tensor_cores_and_products_do_not() -> None:
    with fake_mode():
        module = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Linear(510, 510, bias=False)).eval()
        graph = trace(module, {"input": torch.zeros(1, 64, 512, 512)}, {"input": "latent"})
    conv, linear = (estimate(graph, "a5000").nodes[node.name] for node in graph.nodes)
    efficiency = device_spec("a5000").efficiency
    assert conv.ms == pytest.approx(2 * conv.macs / (55.6e9 * efficiency.conv))
    assert linear.ms == pytest.approx(2 * linear.macs / (27.8e9 * efficiency.matmul))


def test_expanded_operands_are_read_once() -> None:
    class Broadcast(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.expand(100, 50) * 2

    graph = trace(Broadcast().eval(), {"x": torch.zeros(50)}, {"x": "latent"})
    expand, mul = (estimate(graph, "cpu").nodes[node.name] for node in graph.nodes)
    assert (expand.read_bytes, expand.write_bytes) == (0, 0)
    assert (mul.read_bytes, mul.write_bytes) == (4 * 50, 4 * 5000)


def test_unknown_device_is_answered_with_the_choices() -> None:
    with pytest.raises(UsageError, match=r"'tpu'.*h200, h100"):
        estimate(small_graph("dit-like"), "tpu")
