"""Baselines: other ways to split the same denoiser over as many devices, under the same costs.

All run as AsyncDiff runs its own (arXiv 2406.06911): one component per device, features of the last step.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from partitioner.baselines.asyncdiff_split import broadcast_bytes, by_module, has_modules, published_split
from partitioner.errors import InfeasibleError, UsageError
from partitioner.graph.ir import TracedGraph
from partitioner.search.arrays import Ints
from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate
from partitioner.search.problem import Problem
from partitioner.search.solver import Solver
from partitioner.search.split import Split


@dataclass(frozen=True, slots=True)
class Baseline:
    """Figures of one step: time in ms, bytes (each tensor once per reading component), staleness.

    broadcast_bytes_per_step: what AsyncDiff's code sends instead, every hooked module's output; None for the others.
    """

    step_ms: float
    bytes_per_step: int
    staleness: float
    broadcast_bytes_per_step: int | None = None


def baselines(
    graph: TracedGraph, problem: Problem, devices: Devices, chain: Split | None = None, calls: int = 1
) -> dict[str, Baseline]:
    """By name: "contiguous", "equal_parameters", and "asyncdiff" where a split for so many devices was published.

    problem: of ``graph``, a full call. chain: the solver's for look-ahead, where it is known. One that is not possible
    (more devices than parts) is left out. calls: of a step, all of which its figures are of.
    """
    found: dict[str, Baseline] = {}
    try:
        chain = chain or Solver(problem).solve(devices, "lookahead")
        found["contiguous"] = _figures(problem, chain.assignment, devices, chain.device_of)
        found["equal_parameters"] = _figures(problem, equal_parameters(problem, len(devices)), devices)
    except (InfeasibleError, UsageError):
        pass
    modules = published_split(graph.model, len(devices))
    if modules is not None and has_modules(graph, modules):
        found["asyncdiff"] = _figures(
            problem, by_module(graph, problem, modules), devices, broadcast=broadcast_bytes(graph, modules)
        )
    return {name: _of_step(figures, calls) for name, figures in found.items()}


def _of_step(figures: Baseline, calls: int) -> Baseline:
    broadcast = figures.broadcast_bytes_per_step
    return replace(
        figures,
        step_ms=calls * figures.step_ms,
        bytes_per_step=calls * figures.bytes_per_step,
        broadcast_bytes_per_step=None if broadcast is None else calls * broadcast,
    )


def _figures(
    problem: Problem,
    assignment: Sequence[int] | Ints,
    devices: Devices,
    device_of: Sequence[int] | None = None,
    broadcast: int | None = None,
) -> Baseline:
    figures = evaluate(problem, assignment, devices, "async", device_of)
    return Baseline(figures.step_ms, figures.bytes_per_step, figures.staleness, broadcast)


def equal_parameters(problem: Problem, components: int) -> list[int]:
    """A contiguous split into components of about the same bytes of parameters; each has a node."""
    first = np.full(len(problem.item_bytes), problem.size, dtype=np.int64)
    np.minimum.at(first, problem.reading_item, problem.reading_node)
    held = np.zeros(problem.size + 1)
    np.add.at(held, first, problem.item_parameter_bytes)
    before = np.concatenate([[0.0], np.cumsum(held[: problem.size])])
    borders = np.flatnonzero(problem.legal_border)
    borders = borders[(borders > 0) & (borders < problem.size)]
    if len(borders) < components - 1:
        raise InfeasibleError(f"the denoiser has {len(borders) + 1} parts; {components} components need as many")
    chosen: list[int] = []
    for k in range(1, components):
        low = len([b for b in borders if chosen and b <= chosen[-1]])
        usable = borders[low : len(borders) - (components - 1 - k)]
        distance = np.abs(before[usable] - before[-1] * k / components)
        chosen.append(int(usable[np.argmin(distance)]))
    return [bisect.bisect_right(chosen, v) for v in range(problem.size)]
