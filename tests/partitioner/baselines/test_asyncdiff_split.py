"""AsyncDiff's published splits and what its code broadcasts."""

from __future__ import annotations

import pytest

from partitioner.baselines.asyncdiff_split import broadcast_bytes, by_module, published_split
from partitioner.graph.ir import TracedGraph
from partitioner.search.evaluate import check_placement
from partitioner.search.problem import Problem

# Megabytes per step of AsyncDiff's own hooks on sd15 (float16, guidance batch), counted with fake tensors.
SD15_BROADCAST_MB = {2: 64.9, 3: 72.8, 4: 64.9}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_what_asyncdiff_broadcasts(sd15: tuple[TracedGraph, Problem], count: int) -> None:
    modules = published_split("sd15", count)
    assert modules is not None
    assert broadcast_bytes(sd15[0], modules) / 1e6 == pytest.approx(SD15_BROADCAST_MB[count], abs=0.05)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_published_split_is_a_placement_by_module(sd15: tuple[TracedGraph, Problem], count: int) -> None:
    graph, problem = sd15
    modules = published_split("sd15", count)
    assert modules is not None
    placed = by_module(graph, problem, modules)
    check_placement(problem, placed, count)
    for name, component in zip(problem.names, placed, strict=True):
        module = graph.node_by_name[name].module
        for k, names in enumerate(modules):
            if any(module == other or module.startswith(f"{other}.") for other in names):
                assert component == k
