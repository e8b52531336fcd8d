"""Whole components run on random tensors, also with storage that is written to and operators with several outputs."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from partitioner.costs import components as component_timing
from partitioner.costs.components import _runner, time_components
from partitioner.graph.export import trace


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 128)
        self.second = nn.Linear(64, 64)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        left, right = self.first(sample + timestep).chunk(2, dim=-1)
        return self.second(left * torch.sigmoid(right)).softmax(-1)


def test_every_component_is_timed() -> None:
    inputs = {"sample": torch.zeros(512, 64), "timestep": torch.zeros(())}
    graph = trace(Mixed().eval(), inputs, {"sample": "latent", "timestep": "timestep"})
    targets = [node.target for node in graph.latent_nodes]
    border = targets.index("aten.sigmoid.default") + 2
    placed = {node.name: int(position >= border) for position, node in enumerate(graph.latent_nodes)}
    times = time_components(graph, placed, 2, "cpu")
    assert len(times) == 2
    assert min(times) > 0


def test_on_a_gpu_one_component_at_a_time_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that only one needs to fit."""
    held: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    most = []

    def runner(*_: object) -> nn.Module:
        held.add(made := nn.Identity())
        most.append(len(held))
        return made

    monkeypatch.setattr(component_timing, "_runner", runner)
    monkeypatch.setattr(component_timing, "measure_whole", lambda run, *_, **__: [1.0, 1.0])
    graph = trace(Deep().eval(), {"sample": torch.zeros(2, 4, 8, 8)}, {"sample": "latent"})
    placed = {node.name: min(2, number) for number, node in enumerate(graph.latent_nodes)}
    assert time_components(graph, placed, 3, "cuda:0") == [1.0, 1.0, 1.0]
    assert most == [1, 1, 1]


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 64, 3)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(12))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        hidden = self.conv(sample).flatten(2).transpose(1, 2)
        for layer in self.layers:
            hidden = torch.nn.functional.gelu(layer(hidden))
        return hidden


def test_values_stay_of_order_one_through_a_component() -> None:
    """Operators such as gelu take longer on huge values, which a trained denoiser does not have."""
    graph = trace(Deep().eval(), {"sample": torch.zeros(2, 4, 8, 8)}, {"sample": "latent"})
    torch.manual_seed(0)
    (made,) = _runner(graph, list(graph.latent_nodes), torch.device("cpu"))()
    assert 0.01 < made.std() < 10
