"""baselines: other ways to split the same denoiser over as many devices, under the same costs.

All run as AsyncDiff runs its own (arXiv 2406.06911): one component per device, features of the last step.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from partitioner.errors import InfeasibleError, UsageError
from partitioner.evaluate import evaluate
from partitioner.ir import TracedGraph
from partitioner.problem import Devices, Ints, Problem
from partitioner.solve import Solver
from profiles.strict_json import read_json

_DOWN_BLOCK = re.compile(r"down_blocks\.\d+")
_SPLITS = Path(__file__).parent / "data" / "asyncdiff_splits.json"


@dataclass(frozen=True, slots=True)
class Baseline:
    """Figures of one step: time in ms, bytes (each tensor once per reading component), staleness.

    broadcast_bytes_per_step: what AsyncDiff's code sends instead, every hooked module's output; None for the others.
    """

    step_ms: float
    bytes_per_step: int
    staleness: float
    broadcast_bytes_per_step: int | None = None


def baselines(graph: TracedGraph, problem: Problem, devices: Devices) -> dict[str, Baseline]:
    """By name: "contiguous", "equal_parameters", and "asyncdiff" where a split for so many devices was published.

    problem: of ``graph``, a full call. One that is not possible (more devices than parts) is left out.
    """
    found: dict[str, Baseline] = {}
    try:
        chain = Solver(problem).solve(devices, "lookahead")
        found["contiguous"] = _figures(problem, chain.assignment, devices, chain.device_of)
        found["equal_parameters"] = _figures(problem, equal_parameters(problem, len(devices)), devices)
    except (InfeasibleError, UsageError):
        pass
    modules = published_split(graph.model, len(devices))
    if modules is not None and _has_modules(graph, modules):
        found["asyncdiff"] = _figures(
            problem, by_module(graph, problem, modules), devices, broadcast=broadcast_bytes(graph, modules)
        )
    return found


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


@cache
def _published() -> dict[str, dict[str, list[list[str]]]]:
    document = read_json(_SPLITS, 1_000_000)
    assert isinstance(document, dict)
    return document


def published_split(model: str, devices: int) -> list[list[str]] | None:
    """AsyncDiff's modules by component (github.com/czg1225/AsyncDiff), None where it has no such split."""
    return _published().get(model, {}).get(str(devices))


def by_module(graph: TracedGraph, problem: Problem, modules: Sequence[Sequence[str]]) -> list[int]:
    """Component of each of the problem's nodes: that of its module; outside all of them, its first reader's.

    (Every rank of AsyncDiff runs what is between the modules, such as a UNet's concatenations, on what it received.)
    """
    owner = {module: k for k, names in enumerate(modules) for module in names}
    placed: dict[str, int] = {}
    for name in reversed(problem.names):
        inside = [owner[module] for module in enclosing_modules(graph.node_by_name[name].module) if module in owner]
        readers = [placed[reader] for reader in graph.readers.get(name, ()) if reader in placed]
        placed[name] = (inside or readers or [len(modules) - 1])[0]
    result = [placed[name] for name in problem.names]
    for members in problem.units.values():
        for v in members.tolist():
            result[v] = result[int(members[0])]
    return result


def broadcast_bytes(graph: TracedGraph, modules: Sequence[Sequence[str]]) -> int:
    """Bytes of the outputs of all these modules: what is broadcast in a step."""
    return sum(broadcast_sizes(graph, modules).values())


def broadcast_sizes(graph: TracedGraph, modules: Sequence[Sequence[str]]) -> dict[str, int]:
    """Module -> bytes of its outputs, in the order of their computation.

    A UNet's down block returns its last tensor twice, as hidden state and among its skip connections.
    """
    hooked = {module for names in modules for module in names}

    def hook(name: str) -> str | None:
        node = graph.node_by_name[name]
        return next((module for module in enclosing_modules(node.module) if module in hooked), None)

    results = set(graph.result_values)
    sent: dict[str, list[int]] = {}
    for node in graph.latent_nodes:
        inside = hook(node.name)
        if inside is None:
            continue
        readers = graph.readers.get(node.name, ())
        if node.name in results or any(hook(reader) != inside for reader in readers):
            sent.setdefault(inside, []).append(sum(meta.size_bytes for meta in node.outputs))
    return {module: sum(sizes) + (sizes[-1] if _DOWN_BLOCK.fullmatch(module) else 0) for module, sizes in sent.items()}


def _has_modules(graph: TracedGraph, modules: Sequence[Sequence[str]]) -> bool:
    there = {module for node in graph.latent_nodes for module in enclosing_modules(node.module)}
    return all(module in there for names in modules for module in names)


def enclosing_modules(module: str) -> list[str]:
    """A module's path and those of the modules that it is in, innermost first."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
