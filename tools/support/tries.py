"""try_denoiser: whether a class traces, plans and runs exactly on two devices, or where it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from partitioner import Plan, compile, trace
from partitioner.planning.options import PlanOptions
from runtime.engine import Engine
from runtime.options import EngineOptions
from tools.support.tiny_denoiser import TinyDenoiser

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
    step, nodes = STEPS[0], 0
    try:
        module, inputs, roles = tiny.make()
        with torch.no_grad():
            wanted = module(**inputs)
        step = STEPS[1]
        nodes = len(trace(module, inputs, roles, model=tiny.name).nodes)
        if only_trace:
            return Tried(nodes=nodes)
        step = STEPS[2]
        plan = compile(module, inputs, roles, 2, model=tiny.name, options=PlanOptions(force=True))
        step = STEPS[3]
        found = _run(module, plan, inputs)
    except Exception as error:
        return Tried(step, _first_line(error), nodes)
    return Tried(nodes=nodes, difference=largest_difference(wanted, found))


def _run(module: torch.nn.Module, plan: Plan, inputs: Mapping[str, Any]) -> Any:
    with Engine(module, plan, EngineOptions(transport="emulation", exact=True)) as engine, torch.no_grad():
        return engine(**inputs)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"


def largest_difference(one: Any, other: Any) -> float:
    """The largest difference between the tensors of two equal structures; infinite where the structures differ.

    >>> largest_difference((torch.zeros(2), [torch.ones(1)]), (torch.zeros(2), [torch.zeros(1)]))
    1.0
    """
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape:
            return float("inf")
        return float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return max((largest_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, Sequence) and isinstance(other, Sequence) and len(one) == len(other):
        return max((largest_difference(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one is other is None else float("inf")
