"""engine: step times of the engine with several ranks on one device, beside the unmodified denoiser."""

from __future__ import annotations

import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from partitioner.errors import first_line
from partitioner.graph.ir import Role, TracedGraph
from runtime.driver import traced_graphs
from runtime.engine import Engine
from runtime.options import EngineOptions
from tools.gpu_suite.denoisers import denoiser, graphs_of
from tools.gpu_suite.mps import mps_folder
from tools.gpu_suite.part_run import PartRun
from tools.gpu_suite.plans import plan_of

STEPS = 12  # of a trajectory
ROUNDS = 3  # trajectories whose median counts, after a first one
LIMIT_S = 60.0  # for having the device in one go


class Sampling:
    """A loop of a user's own with Euler's sampler; it brings nothing from the device to the host.

    Args:
        inputs: the arguments of a call; those that are numbers of floating point become random ones.
        roles: of the arguments.
        device: where.
    """

    def __init__(self, inputs: Mapping[str, Any], roles: Mapping[str, Any], device: torch.device) -> None:
        from diffusers import EulerDiscreteScheduler

        def named(role: Role) -> str:
            return next(path for path, given in roles.items() if given in (role, role.name.lower()))

        torch.manual_seed(0)
        self.scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear")
        self._device = device
        self._inputs = _moved(inputs, device)
        self._latent, self._timestep = named(Role.LATENT), named(Role.TIMESTEP)
        self._noise = self._inputs[self._latent]

    @torch.no_grad()
    def run(self, call: Callable[..., Any]) -> torch.Tensor:
        """One trajectory; returns its last latent."""
        self.scheduler.set_timesteps(STEPS, device=self._device)
        latent: torch.Tensor = self._noise * self.scheduler.init_noise_sigma
        for timestep in self.scheduler.timesteps:
            sample = self.scheduler.scale_model_input(latent, timestep)
            output = call(**{**self._inputs, self._latent: sample, self._timestep: timestep})[0]
            latent = self.scheduler.step(output, timestep, latent).prev_sample
        return latent


def engine(run: PartRun) -> dict[str, Any]:
    """Time steps of the engine with N ranks on one device: async, exact, and async without CUDA graphs.

    Async steps have all components at work at once, exact ones one after the other. host_ms is the time until a call
    returns, step_ms includes what the device still does then. Both include the sampler's step. Transports are the
    engine's, "shares" (threads with green contexts) and "mps" (processes with equal shares by NVIDIA's MPS).
    """
    transport, ranks = run.choices[0], int(run.choices[1])
    if transport == "mps":  # before CUDA is there; processes that are started inherit it
        os.environ |= {
            "CUDA_MPS_PIPE_DIRECTORY": mps_folder(run.folder),
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(100 // ranks),
        }
    build, inputs, roles = denoiser(run.denoiser)
    graph = graphs_of(run.denoiser, run.folder).whole
    plan = plan_of(run, graph, ranks)
    torch.manual_seed(0)
    with torch.device(run.target):
        module = build()
    module.requires_grad_(False)
    sampling = Sampling(inputs, roles, run.target)
    document: dict[str, Any] = {"denoiser": run.denoiser, "transport": transport, "ranks": ranks, "rows": []}
    with run.alone(LIMIT_S):
        expected = sampling.run(module)
        document["module"], _ = _step_times(run, sampling, module)
    run.save(document)
    for exact, graphs in ((False, None), (True, None), (False, False)):
        if graphs is not None and not run.on_gpu:
            continue
        options = EngineOptions(
            transport={"shares": "threads", "mps": "processes"}.get(transport, transport),
            exact=exact,
            cuda_graphs=graphs,
            green_contexts=transport == "shares",
            step_timeout_s=30,
            startup_timeout_s=90,
        )
        row: dict[str, Any] = {"exact": exact, "cuda_graphs": graphs}
        document["rows"].append(row)
        try:
            row |= _engine_row(run, module, plan, options, sampling, graph, expected)
        except Exception as error:  # the other rows say more about it
            traceback.print_exc()
            row["failed"] = f"{type(error).__name__}: {first_line(error)}"
        run.save(document)
    return document


def _engine_row(
    run: PartRun, module: nn.Module, plan: Any, options: EngineOptions, sampling: Sampling, graph: TracedGraph,
    expected: torch.Tensor,
) -> dict[str, Any]:  # fmt: skip
    start = time.perf_counter()
    devices = [run.device] * plan.ranks
    with (
        _traced_already(graph),
        Engine(module, plan, options, devices=devices, scheduler=lambda: sampling.scheduler) as running,
    ):
        found: dict[str, Any] = {"start_s": time.perf_counter() - start}
        with run.alone(LIMIT_S):
            made = sampling.run(running)
            found |= {"equals_module": torch.equal(made, expected), "difference": _difference(made, expected)}
            times, made = _step_times(run, sampling, running)
            found |= {**times, "difference_later": _difference(made, expected)}  # of replayed graphs
            stats = running.stats
        found |= {"mode": stats.mode, "exact_ms": stats.exact_ms, "async_ms": stats.async_ms}
        found["exact_reasons"] = dict(stats.exact_reasons)
        found["ranks"] = [
            {"sent_bytes": report.sent_bytes, "wait_s": report.wait_seconds, "parameter_bytes": report.parameter_bytes}
            for report in stats.ranks
        ]
    return found


def _step_times(run: PartRun, sampling: Sampling, call: Callable[..., Any]) -> tuple[dict[str, float], torch.Tensor]:
    """Medians over trajectories of the mean time of a step; and the last latent."""
    host, whole = [], []
    for _ in range(ROUNDS):
        run.synchronize()
        start = time.perf_counter()
        made = sampling.run(call)
        host.append((time.perf_counter() - start) * 1e3 / STEPS)
        run.synchronize()
        whole.append((time.perf_counter() - start) * 1e3 / STEPS)
    return {"step_ms": statistics.median(whole), "host_ms": statistics.median(host)}, made


def _difference(made: torch.Tensor, expected: torch.Tensor) -> float | None:
    """Norm of the difference over that of what was expected; None where that is not finite."""
    share = float((made.double() - expected.double()).norm() / expected.double().norm())
    return share if share == share and share < float("inf") else None


@contextmanager
def _traced_already(graph: TracedGraph) -> Iterator[None]:
    """Engines that start in this block trace nothing: their denoiser's graph is there."""
    with patch.object(traced_graphs, "trace", lambda *_, **__: graph):
        yield


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    return torch.randn_like(value, device=device) if value.is_floating_point() else value.to(device)
