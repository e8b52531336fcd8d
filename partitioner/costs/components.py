"""time_components: run each component of a split whole, on random tensors, and time it.

Times of single nodes miss what only a whole component shows: caches that neighbours share, the host's overhead, the
clock under load. The planner rescales the costs by the difference and solves again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from partitioner.costs.random_tensors import random_value
from partitioner.costs.timing import TimingMode, measure_by_turns, measure_whole, summarise
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node
from partitioner.graph.operators import lowered


def time_components(
    graph: TracedGraph, placed: Mapping[str, int], components: int, device: str, *, mode: TimingMode = "eager"
) -> list[float]:
    """Median time in ms of each component's latent nodes, run in order on a warm device.

    On a CPU the components take turns; on a GPU they come one after the other, so that only one at a time needs to fit.

    Args:
        graph: The graph that is split.
        placed: Latent node name -> component.
        components: How many there are.
        device: "cpu" (one thread) or a GPU such as "cuda:0".
        mode: How the nodes are run; see TimingMode.

    Raises:
        MeasureError: The device is not there, or the components do not run on it.
    """
    made = component_runs(graph, placed, components, device)
    if torch.device(device).type == "cpu":
        taken = measure_by_turns([make() for make in made], device, mode=mode)
    else:
        taken = [measure_whole(make(), device, mode=mode) for make in made]
    return [summarise(samples).median_ms for samples in taken]


def component_runs(
    graph: TracedGraph, placed: Mapping[str, int], components: int, device: str
) -> list[Callable[[], Callable[[], Any]]]:
    """For each component a function that makes a call of its latent nodes, in order, on random tensors.

    The call holds its tensors: a caller that makes one at a time has the memory of one at a time.
    """
    target = torch.device(device)
    return [
        partial(_runner, graph, [node for node in graph.latent_nodes if placed[node.name] == component], target)
        for component in range(components)
    ]


def _runner(graph: TracedGraph, nodes: list[Node], device: torch.device) -> Callable[[], Any]:
    """A call of the nodes. What they read from others are random tensors, which operators in place may change."""
    made = {node.name for node in nodes}
    external = list(dict.fromkeys(name for node in nodes for name in node.reads if name not in made))
    module = lowered(nodes, external, _kept(graph, made), device)
    values = [random_value(graph, name, device) for name in external]
    return partial(module, *values)


def _kept(graph: TracedGraph, made: set[str]) -> list[str]:
    """The nodes whose values others read, or that make a result: what the component must keep to its end."""
    results = set(graph.result_values)
    return [
        node.name
        for node in graph.latent_nodes
        if node.name in made
        and (node.name in results or any(reader not in made for reader in graph.readers.get(node.name, ())))
    ]
