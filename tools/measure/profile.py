"""Measures the time (ms) of every distinct operator call of a denoiser, and writes them as a cost profile.

    python -m tools.measure profile --model sd15-like --device cpu --output sd15-like.json

The sum over the graph is compared with the measured time of the whole, which is kept in the profile too.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import nn

from partitioner.costs.lookup import apply_profile
from partitioner.costs.measure import measure
from partitioner.costs.random_tensors import random_value
from partitioner.costs.timing import TimingMode, measure_whole, measuring_device, summarise
from partitioner.graph.arguments import flatten_arguments
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.models.find_spec import model_spec
from partitioner.models.registry import model_names
from partitioner.models.spec import trace_model
from profiles.cost_profile import CostProfile, WholeCheck
from runtime.worker.segment import lower
from tools.command import command
from tools.denoisers import DENOISERS

BUSY = 0.1  # an inter-quartile range of the whole above this share of it says more about the machine than the model


def record(name: str, device: str, mode: TimingMode, command: str) -> CostProfile:
    """The profile of one of tools.denoisers, or of a model that partitioner.models knows, with random parameters.

    Half of the whole calls that the sum is compared with run before the operators and half after, so that a machine
    that becomes slower or faster meanwhile is not mistaken for an error.
    """
    target = measuring_device(device, mode)
    module: nn.Module | None = None
    inputs: dict[str, Any] = {}
    if name in DENOISERS:
        module, inputs, roles = DENOISERS[name]()
        graph = trace(module, inputs, roles, model=name)
    else:
        graph = trace_model(model_spec(name))
    run = whole_run(graph, module, inputs, target)
    untraced = None if module is None else _untraced(module, inputs, target)
    whole: list[float] = []
    module_ms: list[float] = []

    def measure_both() -> None:
        whole.extend(measure_whole(run, device, mode=mode))
        if untraced is not None:
            module_ms.extend(measure_whole(untraced, device))

    measure_both()
    profile = measure(graph, device, mode=mode, command=command, progress=_progress)
    measure_both()
    summary = summarise(whole)
    check = WholeCheck(
        model=name,
        fingerprint=graph.fingerprint,
        summed_ms=sum(cost.ms for cost in apply_profile(profile, graph).nodes.values()),
        whole_ms=summary.median_ms,
        whole_iqr_ms=summary.iqr_ms,
        module_ms=statistics.median(module_ms) if module_ms else None,
    )
    return profile.model_copy(update={"checks": (check,)})


def whole_run(
    graph: TracedGraph, module: nn.Module | None, inputs: dict[str, Any], device: torch.device
) -> Callable[[], Any]:
    """A call of the whole traced graph on a device, with the module's parameters or random ones."""
    if module is None:
        names = [*(item.name for item in graph.inputs), *(item.name for item in graph.parameters)]
        values = {name: random_value(graph, name, device) for name in names}
    else:
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        values = {item.name: state[item.path].detach().to(device) for item in graph.parameters}
        values |= {name: tensor.to(device) for name, tensor in flatten_arguments(inputs).tensors.items()}
    reads = [name for name in values if name in graph.readers]
    lowered = lower(graph.nodes, reads, graph.result_values, device)
    arguments = [values[name] for name in reads]
    return lambda: lowered(*arguments)


def _untraced(module: nn.Module, inputs: dict[str, Any], device: torch.device) -> Callable[[], Any]:
    arguments = _moved(inputs, device)
    on_device = module.to(device)
    return lambda: on_device(**arguments)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _progress(done: int, total: int) -> None:
    print(f"\rmeasured {done} of {total} signatures", end="" if done < total else "\n", file=sys.stderr, flush=True)


def report(profile: CostProfile) -> str:
    """What was measured, and how the sum compares with the whole, as text."""
    lines = [f"{len(profile.signatures)} signatures on {profile.device_name}, {profile.dtype}, {profile.mode}"]
    for check in profile.checks:
        lines.append(
            f"{check.model}: nodes sum to {check.summed_ms:.1f} ms; whole {check.whole_ms:.1f} ms "
            f"(iqr {check.whole_iqr_ms:.1f}); error {100 * check.error:+.1f} %"
        )
        if check.whole_iqr_ms > BUSY * check.whole_ms:
            lines.append(f"{check.model}: the machine was busy with something else; record again when it is idle")
        if check.module_ms is not None:
            lines.append(f"{check.model}: untraced module {check.module_ms:.1f} ms")
    return "\n".join(lines)


@command("tools.measure.profile")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0, or 2 for a wrong option, a missing device or a file that cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m tools.measure profile", description=__doc__.splitlines()[0])
    names = ", ".join((*DENOISERS, *model_names()))
    parser.add_argument("--model", required=True, metavar="NAME", help=f"one of {names}, a folder or a hub id")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0 (default: cpu)")
    parser.add_argument("--mode", default="eager", choices=get_args(TimingMode), help="default: eager")
    parser.add_argument("--output", required=True, metavar="FILE", help="the profile to write")
    parser.add_argument("--force", action="store_true", help="overwrite the file")
    options = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    profile = record(options.model, options.device, options.mode, f"{parser.prog} {shlex.join(words)}")
    profile.save(options.output, overwrite=options.force)
    print(report(profile))
    return 0
