"""Plans for the suite's denoisers over equal devices like this one, by profiles that the suite has recorded."""

from __future__ import annotations

import torch

from partitioner.costs.model import CostModel, choose_cost_model
from partitioner.costs.timing import TimingMode
from partitioner.graph.ir import TracedGraph
from partitioner.plan.plan import Plan
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromGraphs
from profiles.device_sheets import DEFAULT_DEVICE, match_device
from tools.gpu_suite.part_run import PartRun


def modes_of(run: PartRun) -> tuple[TimingMode, ...]:
    """How calls are timed on the device, the most telling first."""
    return ("cuda_graph", "eager") if run.on_gpu else ("eager",)


def cost_model_of(run: PartRun) -> CostModel:
    """Costs by the denoiser's recorded profile; by the device's data sheet where there is none."""
    for mode in modes_of(run):
        path = run.folder / f"{run.denoiser}.{mode}.profile.json"
        if path.exists():
            return choose_cost_model(str(path), None)
    name = match_device(torch.cuda.get_device_name(run.target)) if run.on_gpu else "cpu"
    return CostModel(name or DEFAULT_DEVICE)


def plan_of(run: PartRun, graph: TracedGraph, ranks: int) -> Plan:
    """The plan for so many components, asynchronous after one exact step; made once and kept in the folder."""
    path = run.folder / f"{run.denoiser}-{ranks}.plan.json"
    if path.exists() and (kept := Plan.load(path)).fingerprint == graph.fingerprint:
        return kept
    options = PlanOptions(branches=1, mode="async", warmup=1, predictor="hold", prefer="speed", force=True)
    made = plan(PlanRequest(FromGraphs(graph), ranks, cost_model_of(run), options)).plan
    made.save(path, overwrite=True)
    return made
