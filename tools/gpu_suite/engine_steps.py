"""engine: step times of the engine with several ranks on one device, beside the unmodified denoiser."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from partitioner.costs.timing import measuring_device
from partitioner.graph.ir import Role
from partitioner.plan.plan import Plan
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromGraphs
from runtime.engine import Engine
from runtime.options import EngineOptions
from tools.gpu_suite.denoisers import CallInputs, DenoiserGraphs, denoiser, graphs_of
from tools.gpu_suite.shares import COUNTS, ROUNDS
from tools.gpu_suite.splits import cost_model_of

STEPS = 20  # of a trajectory through the engine


def engine(name: str, device: str, folder: Path) -> dict[str, Any]:
    """Time steps of the engine with N ranks on one device, exact and async, beside the unmodified denoiser.

    On a GPU each rank has its share of it and replays CUDA graphs; the step includes all that the engine does.
    """
    build, inputs, roles = denoiser(name)
    target = measuring_device(device, "eager")
    gpu = target.type == "cuda"
    with torch.device(target):
        module = build()
    arguments = _moved(inputs, target)
    graphs = graphs_of(name, folder)
    rows = []
    for count in COUNTS:
        plan = _plan(name, graphs, count, device, folder)
        for exact in (True, False):
            options = EngineOptions(transport="threads", exact=exact, cuda_graphs=gpu, green_contexts=gpu)
            with Engine(module, plan, options, devices=[device] * plan.ranks) as running:
                step_ms = _step_ms(running, arguments, roles, target)
            rows.append({"devices": plan.ranks, "exact": exact, "step_ms": step_ms})
    return {"denoiser": name, "module_ms": _step_ms(module, arguments, roles, target), "rows": rows}


def _plan(name: str, graphs: DenoiserGraphs, count: int, device: str, folder: Path) -> Plan:
    cost_model = cost_model_of(name, device, folder)
    options = PlanOptions(branches=1, mode="async", warmup=1, predictor="hold", prefer="speed", force=True)
    return plan(PlanRequest(FromGraphs(graphs.whole), count, cost_model, options)).plan


def _step_ms(call: Callable[..., Any], arguments: CallInputs, roles: Mapping[str, Any], device: torch.device) -> float:
    """Median over trajectories of the mean time of a call; the first trajectory, which captures graphs, is left out."""
    timestep = next(path for path, role in roles.items() if role in ("timestep", Role.TIMESTEP))
    samples = []
    for _ in range(ROUNDS + 1):
        _wait(device)
        start = time.perf_counter()
        with torch.no_grad():
            for step in range(STEPS):  # a falling timestep makes them one trajectory
                call(**{**arguments, timestep: torch.full_like(arguments[timestep], 999 - 40 * step)})
        _wait(device)
        samples.append((time.perf_counter() - start) * 1e3 / STEPS)
    return statistics.median(samples[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    return torch.randn_like(value, device=device) if _is_floating(value) else _to(value, device)


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
