"""gpu_subject: what tools.gpu_suite measures: denoisers with random parameters, their graphs, calls of them, splits.

Traced graphs and profiles are kept in the suite's folder, so that each denoiser is traced and profiled once.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partitioner.costs.measure import TimingMode, measuring_device
from partitioner.costs.model import CostModel, choose_cost_model
from partitioner.costs.operator_calls import random_value
from partitioner.costs.relative_speed import with_speeds
from partitioner.fleet import parse_fleet
from partitioner.graph.export import trace
from partitioner.graph.ir import Node, TracedGraph
from partitioner.models.spec import model_spec, trace_model
from partitioner.planning.build_problem import build_problem
from partitioner.planning.candidates import Candidate, solve_candidate
from partitioner.planning.options import Options
from partitioner.search.solver import Solver
from profiles.json_files import write_atomic
from runtime.worker.compiled import compiled
from runtime.worker.segment import lower

SMALL = "small"  # a denoiser for trying the suite out on a CPU
Row = dict[str, Any]
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Graphs:
    """whole: of a full call; half: of one half of the guidance batch, None where there are no two."""

    whole: TracedGraph
    half: TracedGraph | None

    def of(self, branches: int) -> TracedGraph:
        assert branches == 1 or self.half is not None
        return self.whole if branches == 1 or self.half is None else self.half


class Small(nn.Module):
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


def denoiser(name: str) -> tuple[Callable[[], nn.Module], Inputs, Mapping[str, Any]]:
    """How to build it with random weights, the arguments of a call, and their roles."""
    if name == SMALL:
        inputs = {"sample": torch.zeros(2, 256, 64), "timestep": torch.zeros(())}
        return lambda: Small().eval(), inputs, {"sample": "latent", "timestep": "timestep"}
    spec = model_spec(name)
    return spec.build, spec.example_inputs(), spec.roles


def graphs_of(name: str, folder: Path) -> Graphs:
    """The traced graphs, from the folder where they are kept there."""
    kept = folder / f"{name}.graphs.pickle"  # of this tool's own making; it loads no others
    if kept.exists():
        graphs: Graphs = pickle.loads(kept.read_bytes())
        return graphs
    if name == SMALL:
        build, inputs, roles = denoiser(name)
        graphs = Graphs(trace(build(), inputs, roles, model=name), None)
    else:
        spec = model_spec(name)
        graphs = Graphs(trace_model(spec), trace_model(spec, branch=True) if spec.halves == 2 else None)
    write_atomic(kept, pickle.dumps(graphs), overwrite=True)
    return graphs


def call_of(
    graph: TracedGraph, nodes: Sequence[Node], device: torch.device, *, compile: bool = False
) -> Callable[[], Any]:
    """A call of some nodes of a graph, whatever they read from others being random."""
    made = {node.name for node in nodes}
    reads = list(dict.fromkeys(name for node in nodes for name in node.reads if name not in made))
    results = set(graph.result_values)
    keeps = [
        node.name
        for node in nodes
        if node.name in results or any(reader not in made for reader in graph.readers.get(node.name, ()))
    ]
    module = lower(nodes, reads, keeps, device)
    values = [random_value(graph, name, device) for name in reads]
    run = compiled(module) if compile else module
    return lambda: run(*values)


def modes_of(device: str) -> tuple[TimingMode, ...]:
    return ("eager", "cuda_graph") if measuring_device(device, "eager").type == "cuda" else ("eager",)


def profile_path(name: str, mode: TimingMode, folder: Path) -> Path:
    return folder / f"{name}.{mode}.profile.json"


def cost_model_of(name: str, device: str, folder: Path) -> CostModel:
    """Costs by the recorded profile of kernels alone, which is what CUDA graphs replay, or else by the eager one."""
    paths = [profile_path(name, mode, folder) for mode in reversed(modes_of(device))]
    return choose_cost_model(str(next((path for path in paths if path.exists()), paths[-1])), None, "1")


def split(name: str, graphs: Graphs, branches: int, components: int, device: str, folder: Path) -> Candidate:
    """The solver's split for equal devices like this one."""
    graph, cost_model = graphs.of(branches), cost_model_of(name, device, folder)
    fleet = with_speeds(parse_fleet(str(branches * components), cost_model.reference), graph, cost_model.reference)
    options = Options(branches=branches, mode="async", force=True)
    solver = Solver(build_problem(graph, cost_model(graph)))
    return solve_candidate(solver, branches, components, "async", fleet, options)


def free() -> None:
    """Give the memory of what is no longer held back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
