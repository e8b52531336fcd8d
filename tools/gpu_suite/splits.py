"""The solver's splits of the suite's denoisers, from profiles that the suite has recorded."""

from __future__ import annotations

from pathlib import Path

from partitioner.costs.model import CostModel, choose_cost_model
from partitioner.costs.relative_speed import with_speeds
from partitioner.costs.timing import TimingMode, measuring_device
from partitioner.fleet import parse_fleet
from partitioner.planning.build_problem import build_problem
from partitioner.planning.candidates import Candidate, Shape, solve_candidate
from partitioner.search.solver import Solver
from tools.gpu_suite.denoisers import DenoiserGraphs


def modes_of(device: str) -> tuple[TimingMode, ...]:
    return ("eager", "cuda_graph") if measuring_device(device, "eager").type == "cuda" else ("eager",)


def profile_path(name: str, mode: TimingMode, folder: Path) -> Path:
    return folder / f"{name}.{mode}.profile.json"


def cost_model_of(name: str, device: str, folder: Path) -> CostModel:
    """Costs by the recorded profile of CUDA graphs if it is there, else by that of eager calls."""
    paths = [profile_path(name, mode, folder) for mode in reversed(modes_of(device))]
    return choose_cost_model(str(next((path for path in paths if path.exists()), paths[-1])), None)


def split(name: str, graphs: DenoiserGraphs, branches: int, components: int, device: str, folder: Path) -> Candidate:
    """The solver's split for equal devices like this one."""
    graph, cost_model = graphs.of(branches), cost_model_of(name, device, folder)
    shape = Shape(branches, components, period=1, mode="async")
    fleet = with_speeds(parse_fleet(shape.ranks, cost_model.reference), graph, cost_model.reference)
    return solve_candidate(Solver(build_problem(graph, cost_model(graph))), shape, fleet)
