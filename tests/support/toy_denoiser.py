"""A small denoiser with a timestep, a prompt and an unused parameter, and its traced graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node

ROLES = {"x": "latent", "t": "timestep", "context": "prompt"}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.time = nn.Linear(4, width)
        self.context = nn.Linear(6, width)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        shift = self.time(t)[:, :, None, None] + self.context(context).mean(1)[:, :, None, None]
        return x + self.dropout(self.conv(torch.nn.functional.silu(self.norm(x)))) * shift


class Denoiser(nn.Module):
    """Two blocks; a sinusoidal timestep embedding; a position table made in forward; one unused parameter."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.unused = nn.Linear(3, 3)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, scale: float = 1.0, return_dict: bool = True
    ) -> Any:
        angles = t.reshape(1, 1) * torch.arange(4, dtype=torch.float32)
        embedded = torch.sin(angles).expand(x.shape[0], -1)
        for block in self.blocks:
            x = block(x, embedded, context)
        x = x * scale
        return {"sample": x} if return_dict else (x,)


def inputs(rows: int = 2, side: int = 8) -> dict[str, Any]:
    return {
        "x": torch.zeros(rows, 4, side, side),
        "t": torch.tensor(3.0),
        "context": torch.zeros(rows, 5, 6),
        "return_dict": False,
    }


def traced(module: nn.Module | None = None, **changes: Any) -> TracedGraph:
    return trace((module or Denoiser()).eval(), {**inputs(), **changes}, ROLES)


def by_target(graph: TracedGraph, target: str) -> list[Node]:
    return [node for node in graph.nodes if node.target == target]
