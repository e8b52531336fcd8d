"""engine: step times of the engine with several ranks on one device, beside the unmodified denoiser."""

from __future__ import annotations

import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from partitioner.errors import first_line
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from runtime.driver import traced_graphs
from runtime.engine import Engine
from runtime.options import EngineOptions
from tools.gpu_suite.denoisers import denoiser, graphs_of
from tools.gpu_suite.mps import mps_folder, mps_runs
from tools.gpu_suite.part_run import PartRun
from tools.gpu_suite.plans import plan_of

EXACT = 10  # first steps of a trajectory, one component after the other
STEPS = 20  # of a trajectory
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
    def run(self, call: Callable[..., Any], when_exact_ends: Callable[[], None]) -> tuple[torch.Tensor, torch.Tensor]:
        """One trajectory; returns its latents after the exact steps and at its end."""
        self.scheduler.set_timesteps(STEPS, device=self._device)
        latent: torch.Tensor = self._noise * self.scheduler.init_noise_sigma
        for step, timestep in enumerate(self.scheduler.timesteps):
            if step == EXACT:
                when_exact_ends()
                exact = latent
            sample = self.scheduler.scale_model_input(latent, timestep)
            output = call(**{**self._inputs, self._latent: sample, self._timestep: timestep})[0]
            latent = self.scheduler.step(output, timestep, latent).prev_sample
        return exact, latent


def engine(run: PartRun) -> dict[str, Any]:
    """Time steps of the engine with N ranks on one device: with CUDA graphs, and with threads also without.

    Exact steps have all components at work one after the other, async steps at once. host_ms is the time until a call
    returns, step_ms includes what the device still does then. Both include the sampler's step. Transports are the
    engine's, "shares" (threads with green contexts) and "mps" (processes with equal shares by NVIDIA's MPS).
    """
    transport, ranks = run.choices[0], int(run.choices[1])
    document: dict[str, Any] = {"denoiser": run.denoiser, "transport": transport, "ranks": ranks, "rows": []}
    if transport == "mps" and not mps_runs(run.folder):
        document["rows"] = [{"cuda_graphs": None, "failed": "NVIDIA's MPS does not run here"}]
        return document
    if transport == "mps":  # before CUDA is there; processes that are started inherit it
        share = str(100 // ranks)
        # MPS' clients share its connections: with 32 for each, the second of them found an H100 "out of memory"
        os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
        os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": mps_folder(run.folder), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": share}
    build, inputs, roles = denoiser(run.denoiser)
    graph = graphs_of(run.denoiser, run.folder).whole
    plan = plan_of(run, graph, ranks)
    torch.manual_seed(0)
    with torch.device(run.target):
        module = build()
    module.requires_grad_(False)
    sampling = Sampling(inputs, roles, run.target)
    with run.alone(LIMIT_S):
        expected = sampling.run(module, lambda: None)
        document["module"], _ = _step_times(run, sampling, module, rounds=1)
    run.save(document)
    for graphs in (None, False) if transport == "threads" and run.on_gpu else (None,):
        options = EngineOptions(
            transport={"shares": "threads", "mps": "processes"}.get(transport, transport),
            warmup=EXACT,
            cuda_graphs=graphs,
            green_contexts=transport == "shares",
            step_timeout_s=30,
            startup_timeout_s=60,
        )
        row: dict[str, Any] = {"cuda_graphs": graphs}
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
    expected: tuple[torch.Tensor, torch.Tensor],
) -> dict[str, Any]:  # fmt: skip
    start = time.perf_counter()
    devices = [run.device] * plan.ranks
    with (
        _traced_already(graph),
        Engine(module, plan, options, devices=devices, scheduler=lambda: sampling.scheduler) as running,
    ):
        found: dict[str, Any] = {"start_s": time.perf_counter() - start}
        with run.alone(LIMIT_S):
            exact, _ = sampling.run(running, lambda: None)
            found["equals_module"] = torch.equal(exact, expected[0])
            times, (exact, last) = _step_times(run, sampling, running)
            found |= {**times, "replayed_equals_module": torch.equal(exact, expected[0])}
            found["difference"] = _difference(last, expected[1])
            stats = running.stats
        found["exact_reasons"] = dict(stats.exact_reasons)
        found["ranks"] = [
            {"sent_bytes": report.sent_bytes, "wait_s": report.wait_seconds, "parameter_bytes": report.parameter_bytes}
            for report in stats.ranks
        ]
    return found


def _step_times(
    run: PartRun, sampling: Sampling, call: Callable[..., Any], *, rounds: int = ROUNDS
) -> tuple[dict[str, float], tuple[torch.Tensor, torch.Tensor]]:
    """Medians over trajectories of the mean time of an exact and of an async step; and the last ones' latents."""
    samples: list[tuple[float, float, float, float]] = []
    for _ in range(rounds):
        moments = [_synchronized(run)]
        latents = sampling.run(call, partial(_note, run, moments))
        _note(run, moments)
        start, exact_host, exact, host, end = moments
        samples.append((exact - start, exact_host - start, end - exact, host - exact))
    medians = [statistics.median(times) * 1e3 for times in zip(*samples, strict=True)]
    steps = (EXACT, EXACT, STEPS - EXACT, STEPS - EXACT)
    names = ("exact_step_ms", "exact_host_ms", "step_ms", "host_ms")
    return {name: time_ / count for name, time_, count in zip(names, medians, steps, strict=True)}, latents


def _note(run: PartRun, moments: list[float]) -> None:
    """Add when the host has got here, and when the device has."""
    moments += [time.perf_counter(), _synchronized(run)]


def _synchronized(run: PartRun) -> float:
    run.synchronize()
    return time.perf_counter()


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
