"""gpu_parts: the measurements of tools.gpu_suite, each a function of a denoiser's name that gives one JSON document.

python -m tools.gpu_parts components --denoiser sd15 --device cuda:0 --output FOLDER

Run by itself a part writes FOLDER/PART-DENOISER.json. Traced graphs are kept in the folder, so that each denoiser is
traced once. Times in ms, medians. Parameters and inputs are random: no weights are needed.
"""

from __future__ import annotations

import argparse
import gc
import json
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import nn

from partitioner.calls import random_value
from partitioner.candidates import Candidate, Options, solve_candidate
from partitioner.cost import GraphCosts, apply_profile, load_profile
from partitioner.fleet import parse_fleet, with_speeds
from partitioner.graph import build_problem
from partitioner.ir import Node, Role, TracedGraph
from partitioner.measure import Mode, measure, measure_whole, measuring_device, summarise
from partitioner.models import model_spec, trace_model
from partitioner.plan import Plan
from partitioner.planner import plan_graphs
from partitioner.pricing import choose_pricing
from partitioner.solve import Solver
from partitioner.trace import trace
from profiles.cost_profile import CostProfile, WholeCheck
from profiles.strict_json import write_atomic
from runtime.compiled import compiled
from runtime.component import lower
from runtime.cuda_shares import share_size, share_streams
from runtime.engine import Engine, EngineOptions

SMALL = "small"  # a denoiser for trying the parts out on a CPU
DEVICE_COUNTS = (2, 4, 8)
REPLAYS = 20  # of each component in one measurement of concurrency
ROUNDS = 5
STEPS = 20  # of a trajectory through the engine
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


def traces(names: Sequence[str], folder: Path) -> Row:
    """Trace all denoisers, several at a time: how many nodes each has, or why it cannot be traced."""
    start = time.perf_counter()
    found: Row = {}
    with ProcessPoolExecutor(max_workers=min(len(names), 8), mp_context=get_context("spawn")) as pool:
        for name, under_way in {name: pool.submit(graphs_of, name, folder) for name in names}.items():
            error = under_way.exception()
            found[name] = len(under_way.result().whole.nodes) if error is None else f"{type(error).__name__}: {error}"
    return {"seconds": time.perf_counter() - start, "nodes": found}


def tests(folder: Path) -> Row:
    """The tests that need a GPU; their output is this process's."""
    report = folder / "tests.xml"
    places = ["tests/runtime", "tests/partitioner", "tests/tools"]
    command = ["pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}", *places]
    status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    found = ElementTree.parse(report).getroot().find("testsuite")
    assert found is not None
    counts = {what: int(found.get(what, 0)) for what in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in found.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {"status": status, **counts, "failed": failed}


def call_of(
    graph: TracedGraph, nodes: Sequence[Node], device: torch.device, *, compile: bool = False
) -> Callable[[], Any]:
    """A call of some nodes of a graph, whatever they read from others being random."""
    made = {node.name for node in nodes}
    reads = list(dict.fromkeys(name for node in nodes for name in node.reads if name not in made))
    results = set(graph.result_values)
    keeps = [
        name for name in made
        if name in results or any(reader not in made for reader in graph.readers.get(name, ()))
    ]  # fmt: skip
    module = lower(nodes, reads, keeps, device)
    values = [random_value(graph, name, device) for name in reads]
    run = compiled(module) if compile else module
    return lambda: run(*values)


def modes_of(device: str) -> tuple[Mode, ...]:
    return ("eager", "cuda_graph") if measuring_device(device, "eager").type == "cuda" else ("eager",)


def times(run: Callable[[], Any], device: str) -> dict[Mode, float]:
    """Median by mode."""
    return {mode: statistics.median(measure_whole(run, device, mode=mode)) for mode in modes_of(device)}


def profile(name: str, device: str, folder: Path) -> Row:
    """Profiles of every operator of a full call and of half a one, in files of their own; their sums and the whole.

    The whole calls run half before the operators and half after, as in tools.record_profile.
    """
    graphs = graphs_of(name, folder)
    target = measuring_device(device, "eager")
    rows = []
    for mode in modes_of(device):
        run = call_of(graphs.whole, graphs.whole.nodes, target)
        whole = measure_whole(run, device, mode=mode)
        found = measure(graphs.whole, device, mode=mode, command=_command())
        whole += measure_whole(run, device, mode=mode)
        del run
        if graphs.half is not None:
            half = measure(graphs.half, device, mode=mode)
            found = found.model_copy(update={"signatures": {**half.signatures, **found.signatures}})
        summary = summarise(whole)
        check = WholeCheck(
            model=name,
            fingerprint=graphs.whole.fingerprint,
            summed_ms=sum(cost.ms for cost in apply_profile(found, graphs.whole).nodes.values()),
            whole_ms=summary.median_ms,
            whole_iqr_ms=summary.iqr_ms,
            module_ms=None,
        )
        found.model_copy(update={"checks": (check,)}).save(profile_path(name, mode, folder), overwrite=True)
        rows.append(
            {
                "mode": mode,
                "signatures": len(found.signatures),
                "summed_ms": check.summed_ms,
                "whole_ms": check.whole_ms,
                "whole_iqr_ms": check.whole_iqr_ms,
                "error": check.error,
            }
        )
    return {"denoiser": name, "dtype": found.dtype, "profiles": rows}


def profile_path(name: str, mode: Mode, folder: Path) -> Path:
    return folder / f"{name}.{mode}.profile.json"


def compiled_whole(name: str, device: str, folder: Path) -> Row:
    """The whole, compiled, beside the sums of the profiles that were recorded."""
    graphs = graphs_of(name, folder)
    run = call_of(graphs.whole, graphs.whole.nodes, measuring_device(device, "eager"), compile=True)
    start = time.perf_counter()
    with torch.inference_mode():
        run()
    seconds = time.perf_counter() - start
    measured = times(run, device)
    rows = []
    for mode, whole_ms in measured.items():
        summed = _recorded(name, mode, folder).checks[0].summed_ms
        rows.append({"mode": mode, "whole_ms": whole_ms, "summed_ms": summed, "error": summed / whole_ms - 1})
    return {"denoiser": name, "compile_seconds": seconds, "compiled": rows}


def _recorded(name: str, mode: Mode, folder: Path) -> CostProfile:
    return load_profile(profile_path(name, mode, folder))


def costs_of(name: str, graph: TracedGraph, device: str, folder: Path) -> GraphCosts:
    """By the profile of kernels alone where there is one: what CUDA graphs replay."""
    return apply_profile(_recorded(name, modes_of(device)[-1], folder), graph)


def split(name: str, graphs: Graphs, branches: int, components: int, device: str, folder: Path) -> Candidate:
    """The solver's split for equal devices like this one."""
    graph = graphs.of(branches)
    costs = costs_of(name, graph, device, folder)
    known = choose_pricing(str(profile_path(name, modes_of(device)[-1], folder)), None, "1").reference
    fleet = with_speeds(parse_fleet(str(branches * components), known), graph, known)
    options = Options(branches=branches, mode="async", force=True)
    return solve_candidate(Solver(build_problem(graph, costs)), branches, components, "async", fleet, options)


def components(name: str, device: str, folder: Path) -> Row:
    """The whole denoiser's latent nodes, and each component of 2-, 4- and 8-device plans, with and without branches."""
    graphs = graphs_of(name, folder)
    target = measuring_device(device, "eager")
    rows: list[Row] = []
    for count in (1, *DEVICE_COUNTS):
        for branches in (1, 2) if graphs.half is not None and count > 1 else (1,):
            graph = graphs.of(branches)
            if count == branches:
                placed, predicted = dict.fromkeys((node.name for node in graph.latent_nodes), 0), []
            else:
                found = split(name, graphs, branches, count // branches, device, folder)
                if found.split is None:
                    rows.append({"devices": count, "branches": branches, "refused": found.reason})
                    continue
                placed, predicted = dict(found.placed), [c.load_ms for c in found.evaluation.components]
            measured = []
            for component in range(count // branches):
                run = call_of(graph, [node for node in graph.latent_nodes if placed[node.name] == component], target)
                measured.append(times(run, device))
                del run
                _free(target)
            rows.append(
                {
                    "devices": count,
                    "branches": branches,
                    "components": count // branches,
                    "predicted_ms": predicted,
                    **{f"{mode}_ms": [each[mode] for each in measured] for mode in modes_of(device)},
                }
            )
    for row in rows[1:]:
        for mode in modes_of(device):
            if f"{mode}_ms" in row:
                row[f"{mode}_speedup"] = rows[0][f"{mode}_ms"][0] / max(row[f"{mode}_ms"])
    return {"denoiser": name, "rows": rows}


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
    for count in (2, 4):
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
        _free(target)
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
    for count in (2, 4):
        plan = _plan(name, graphs, count, device, folder)
        for exact in (True, False):
            options = EngineOptions(transport="threads", exact=exact, cuda_graphs=gpu, green_contexts=gpu)
            with Engine(module, plan, options, devices=[device] * plan.ranks) as running:
                _trajectory_ms(running, arguments, roles, target)  # captures
                step_ms = statistics.median(_trajectory_ms(running, arguments, roles, target) for _ in range(3))
            rows.append({"devices": plan.ranks, "exact": exact, "step_ms": step_ms})
    return {"denoiser": name, "module_ms": _trajectory_ms(module, arguments, roles, target), "rows": rows}


def _plan(name: str, graphs: Graphs, count: int, device: str, folder: Path) -> Plan:
    known = choose_pricing(str(profile_path(name, modes_of(device)[-1], folder)), None, "1").reference
    options = Options(branches=1, mode="async", warmup=1, predictor="hold", prefer="speed", force=True)
    planning = plan_graphs(
        graphs.whole, None, parse_fleet(str(count), known), lambda g: costs_of(name, g, device, folder), options
    )
    return planning.plan


def _trajectory_ms(
    call: Callable[..., Any], arguments: Inputs, roles: Mapping[str, Any], device: torch.device
) -> float:
    """Mean time of a call; a falling timestep makes them one trajectory."""
    timestep = next(path for path, role in roles.items() if role in ("timestep", Role.TIMESTEP))
    _wait(device)
    start = time.perf_counter()
    with torch.no_grad():
        for step in range(STEPS):
            now = torch.full_like(arguments[timestep], 999 - 40 * step)
            call(**{**arguments, timestep: now})
    _wait(device)
    return (time.perf_counter() - start) * 1e3 / STEPS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    return torch.randn_like(value, device=device) if _is_floating(value) else _to(value, device)


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _command() -> str:
    return " ".join(["python -m tools.gpu_parts", *sys.argv[1:]])


PARTS: dict[str, Callable[[str, str, Path], Row]] = {
    "profile": profile,
    "components": components,
    "concurrency": concurrency,
    "engine": engine,
    "compiled": compiled_whole,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part and write its document; exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_parts", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("tests", "traces", *PARTS))
    parser.add_argument("--denoiser", required=True, metavar="NAME", help="for traces: several, with commas between")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.part == "tests":
        document = tests(options.output)
    elif options.part == "traces":
        document = traces(options.denoiser.split(","), options.output)
    else:
        document = PARTS[options.part](options.denoiser, options.device, options.output)
    name = f"{options.part}-{options.denoiser}.json" if options.part in PARTS else f"{options.part}.json"
    text = json.dumps(document, indent=1)
    write_atomic(options.output / name, (text + "\n").encode(), overwrite=True)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
