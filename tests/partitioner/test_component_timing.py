"""Whole components run on random tensors, also with storage that is written to and operators with several outputs."""

from __future__ import annotations

import torch
from torch import nn

from partitioner.component_timing import time_components
from partitioner.trace import trace


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
