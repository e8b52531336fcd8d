"""Signatures: stable text, and one per kind of work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from partitioner.costs.roofline import estimate
from partitioner.costs.signature import signature
from partitioner.graph.export import trace
from tests.support.graphs import full_graph


def test_signature_is_stable_text() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> Any:
            made = self.conv(x)
            zeros = torch.zeros(2, dtype=torch.float64)
            return made.permute(0, 2, 3, 1).reshape(64, 8), torch.add(made, made, alpha=2), zeros

    graph = trace(Module().eval(), {"x": torch.zeros(1, 4, 8, 8)}, {"x": "latent"})
    found = [signature(graph, node) for node in graph.nodes]
    assert found == [
        "aten.conv2d.default(float32[1,4,8,8], float32[8,4,3,3], float32[8], [1, 1], [1, 1])",
        "aten.zeros.default([2], device=device, dtype=dtype:float64, pin_memory=False)",
        "aten.permute.default(float32[1,8,8,8], [0, 2, 3, 1])",
        "aten.reshape.default(float32[1,8,8,8]@512,8,1,64, [64, 8])",
        "aten.add.Tensor(float32[1,8,8,8], float32[1,8,8,8], alpha=2)",
    ]


@pytest.mark.slow
def test_nodes_of_one_signature_do_the_same_work() -> None:
    graph = full_graph("sd15")
    costs = estimate(graph)
    by_signature: dict[str, set[Any]] = {}
    for node in graph.nodes:
        by_signature.setdefault(signature(graph, node), set()).add(costs.nodes[node.name])
    assert all(len(found) == 1 for found in by_signature.values())
    assert len(by_signature) < 300 < len(graph.nodes)
