"""gpu_concurrency: what runs at once on shares of one GPU, bare and through the engine; parts of tools.gpu_suite."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from partitioner.costs.measure import measuring_device
from partitioner.fleet import parse_fleet
from partitioner.graph.ir import Role
from partitioner.plan.plan import Plan
from partitioner.planning.options import Options
from partitioner.planning.planner import plan_graphs
from runtime.devices.cuda_shares import share_size, share_streams
from runtime.engine import Engine
from runtime.options import EngineOptions
from tools.gpu_subject import (
    Graphs,
    Inputs,
    Row,
    call_of,
    cost_model_of,
    denoiser,
    free,
    graphs_of,
    split,
)

COUNTS = (2, 4)  # of ranks on the GPU
REPLAYS = 20  # of each component in one measurement
ROUNDS = 5  # of measurements, whose median counts
STEPS = 20  # of a trajectory through the engine


class Loop:
    """A call captured as a CUDA graph on a stream; the graph holds what it reads by address only, so this holds it."""

    def __init__(self, run: Callable[[], Any], stream: torch.cuda.Stream) -> None:
        self.stream, self._run = stream, run
        with torch.inference_mode():
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    run()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._outputs = run()

    def replay(self) -> None:
        with torch.cuda.stream(self.stream):
            self._graph.replay()


def together_ms(loops: Sequence[Loop]) -> float:
    """Time per round of replaying all of them at once, each on its stream."""
    samples = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(REPLAYS):
            for loop in loops:
                loop.replay()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) * 1e3 / REPLAYS)
    return statistics.median(samples)


def concurrency(name: str, device: str, folder: Path) -> Row:
    """N components at once, each on its share of the GPU, against the whole denoiser on one such share.

    What is shared all the same, the memory's bandwidth and the clock, is in the figures: "alone" runs one component at
    a time on its share. "unshared" runs them on ordinary streams of the whole GPU.
    """
    graphs = graphs_of(name, folder)
    target = measuring_device(device, "eager")
    whole_run = call_of(graphs.whole, graphs.whole.latent_nodes, target)
    on_all = together_ms([Loop(whole_run, _new_stream(target))])
    rows = []
    for count in COUNTS:
        streams = share_streams(target.index, count)
        on_share = together_ms([Loop(whole_run, streams[0])])
        found = split(name, graphs, 1, count, device, folder)
        runs = [
            call_of(graphs.whole, [node for node in graphs.whole.latent_nodes if found.placed[node.name] == k], target)
            for k in range(count)
        ]
        loops = [Loop(run, stream) for run, stream in zip(runs, streams, strict=True)]
        alone = [together_ms([loop]) for loop in loops]
        together = together_ms(loops)
        del loops
        unshared = together_ms([Loop(run, _new_stream(target)) for run in runs])
        rows.append(
            {
                "devices": count,
                "multiprocessors": share_size(target.index, count),
                "whole_on_share_ms": on_share,
                "alone_ms": alone,
                "together_ms": together,
                "unshared_ms": unshared,
                "speedup": on_share / together,
            }
        )
        del runs
        free()
    return {"denoiser": name, "whole_ms": on_all, "rows": rows}


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def engine(name: str, device: str, folder: Path) -> Row:
    """Steps of the engine with N ranks on one device, exact and async, beside the unmodified denoiser.

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


def _plan(name: str, graphs: Graphs, count: int, device: str, folder: Path) -> Plan:
    cost_model = cost_model_of(name, device, folder)
    options = Options(branches=1, mode="async", warmup=1, predictor="hold", prefer="speed", force=True)
    return plan_graphs(graphs.whole, None, parse_fleet(str(count), cost_model.reference), cost_model, options).plan


def _step_ms(call: Callable[..., Any], arguments: Inputs, roles: Mapping[str, Any], device: torch.device) -> float:
    """Median over trajectories of the mean time of a call, after one in which graphs are captured."""
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
