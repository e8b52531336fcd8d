"""AsyncDiff's published splits, placed on a traced graph, and what its code would broadcast."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from partitioner.graph.ir import TracedGraph
from partitioner.graph.modules import enclosing_modules
from partitioner.search.problem import Problem
from profiles.json_files import read_json

_DOWN_BLOCK = re.compile(r"down_blocks\.\d+")
_SPLITS = Path(__file__).parent / "data" / "asyncdiff_splits.json"


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


def has_modules(graph: TracedGraph, modules: Sequence[Sequence[str]]) -> bool:
    there = {module for node in graph.latent_nodes for module in enclosing_modules(node.module)}
    return all(module in there for names in modules for module in names)
