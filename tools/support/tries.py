"""try_denoiser: whether a class traces, plans and runs exactly on two devices, or where it fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from partitioner import Plan, compile
from partitioner.graph import export
from partitioner.planning.options import PlanOptions
from runtime.engine import Engine
from runtime.options import EngineOptions
from tools.support.tiny_denoiser import TinyDenoiser
from tools.trace_once import traced_once

STEPS = ("build", "trace", "plan", "run")


@dataclass(frozen=True)
class Tried:
    """How far a denoiser came.

    Attributes:
        failed: The step that failed, of STEPS; None where all went well.
        why: The error's first line.
        nodes: Of the traced graph.
        difference: The largest between the module's outputs and those of the engine; None before it ran.
    """

    failed: str | None = None
    why: str = ""
    nodes: int = 0
    difference: float | None = None

    @property
    def traces(self) -> bool:
        """Whether the class can be traced."""
        return self.failed not in STEPS[:2]

    def line(self) -> str:
        """One line that says it all."""
        if self.failed is not None:
            return f"fails to {self.failed}: {self.why}"
        return f"{self.nodes} nodes, largest difference {self.difference:.1e}"


def try_denoiser(tiny: TinyDenoiser, *, only_trace: bool = False) -> Tried:
    """Trace a denoiser, plan it for two devices, and compare an exact call with the module's own.

    Args:
        tiny: The denoiser.
        only_trace: Stop after the trace.
    """
    with traced_once(plans=True):
        return _try(tiny, only_trace)


def _try(tiny: TinyDenoiser, only_trace: bool) -> Tried:
    step, nodes = STEPS[0], 0
    try:
        module, inputs, roles = tiny.make()
        with torch.no_grad():
            wanted = module(**inputs)
        step = STEPS[1]
        nodes = len(export.trace(module, inputs, roles, model=tiny.name).nodes)
        if only_trace:
            return Tried(nodes=nodes)
        step = STEPS[2]
        plan = _plan(module, inputs, roles, tiny.name)
        step = STEPS[3]
        found = _run(module, plan, inputs)
    except Exception as error:
        return Tried(step, first_line(error), nodes)
    return Tried(nodes=nodes, difference=largest_difference(wanted, found))


def run_exactly(
    module: torch.nn.Module, inputs: Mapping[str, Any], roles: Mapping[str, str], name: str
) -> tuple[Any, float]:
    """A call of a denoiser, and the largest difference of an exact one on two devices.

    Args:
        module: The denoiser.
        inputs: Arguments of a call.
        roles: Their roles.
        name: What plans call it.
    """
    with torch.no_grad(), traced_once(plans=True):
        wanted = module(**inputs)
        found = _run(module, _plan(module, inputs, roles, name), inputs)
    return wanted, largest_difference(wanted, found)


def _plan(module: torch.nn.Module, inputs: Mapping[str, Any], roles: Mapping[str, str], name: str) -> Plan:
    return compile(module, inputs, roles, 2, model=name, options=PlanOptions(force=True))


def _run(module: torch.nn.Module, plan: Plan, inputs: Mapping[str, Any]) -> Any:
    with Engine(module, plan, EngineOptions(transport="emulation", exact=True)) as engine, torch.no_grad():
        return engine(**inputs)


def first_line(error: Exception) -> str:
    """An error's type and the first line of its text."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"


def largest_difference(one: Any, other: Any) -> float:
    """The largest difference between the numbers of two equal structures; infinite where the structures differ.

    >>> largest_difference((torch.zeros(2), [torch.ones(1)]), (torch.zeros(2), [torch.zeros(1)]))
    1.0
    """
    ones, others = ([*_tensors(made)] for made in (one, other))
    if [tensor.shape for tensor in ones] != [tensor.shape for tensor in others]:
        return float("inf")
    pairs = zip(ones, others, strict=True)
    return max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)


def is_finite(made: Any) -> bool:
    """Whether all numbers of a structure are."""
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(made))


def _tensors(made: Any) -> Iterator[torch.Tensor]:
    if isinstance(made, Mapping):
        made = list(made.values())
    if isinstance(made, list | tuple):
        for item in made:
            yield from _tensors(item)
    elif isinstance(made, torch.Tensor):
        yield made.detach().double()
    elif made is not None and not isinstance(made, bool):
        yield torch.from_numpy(numpy.array(made, dtype="float64"))  # a picture, an array or a number
