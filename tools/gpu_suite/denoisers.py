"""The denoisers that the suite measures, with random parameters, and their traced graphs.

Traced graphs are kept in the suite's folder, so that each denoiser is traced once.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.models.spec import model_spec, trace_model
from profiles.json_files import write_atomic

SMALL = "small"  # a denoiser for trying the suite out on a CPU
CallInputs = dict[str, Any]


@dataclass(frozen=True)
class DenoiserGraphs:
    """Traced graphs of a denoiser.

    Attributes:
        whole: of a full call.
        half: of a call with one half of the guidance batch; None where the denoiser has no guidance batch.
    """

    whole: TracedGraph
    half: TracedGraph | None

    def of(self, branches: int) -> TracedGraph:
        assert branches == 1 or self.half is not None
        return self.whole if branches == 1 or self.half is None else self.half


class SmallDenoiser(nn.Module):
    """Six residual blocks of width 64, modulated by the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, 64)
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        time_ = nn.functional.silu(self.time(timestep.reshape(1, 1) / 1000))
        for block in self.blocks:
            sample = sample + nn.functional.gelu(block(sample + time_))
        return (sample,)


def denoiser(name: str) -> tuple[Callable[[], nn.Module], CallInputs, Mapping[str, Any]]:
    """(a function that builds it with random weights, the arguments of a call, their roles)."""
    if name == SMALL:
        inputs = {"sample": torch.zeros(2, 256, 64), "timestep": torch.zeros(())}
        return lambda: SmallDenoiser().eval(), inputs, {"sample": "latent", "timestep": "timestep"}
    spec = model_spec(name)
    return spec.build, spec.example_inputs(), spec.roles


def graphs_of(name: str, folder: Path) -> DenoiserGraphs:
    """The traced graphs, read from the folder if they are there, else traced and written to it."""
    kept = folder / f"{name}.graphs.pickle"  # of this tool's own making; it loads no others
    if kept.exists():
        graphs: DenoiserGraphs = pickle.loads(kept.read_bytes())
        return graphs
    if name == SMALL:
        build, inputs, roles = denoiser(name)
        graphs = DenoiserGraphs(trace(build(), inputs, roles, model=name), None)
    else:
        spec = model_spec(name)
        graphs = DenoiserGraphs(trace_model(spec), trace_model(spec, branch=True) if spec.halves == 2 else None)
    write_atomic(kept, pickle.dumps(graphs), overwrite=True)
    return graphs
