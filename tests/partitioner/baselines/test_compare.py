"""Baselines: equal parameters, AsyncDiff's published splits and what its code broadcasts."""

from __future__ import annotations

import pytest

from partitioner.baselines.asyncdiff_split import broadcast_bytes, by_module, published_split
from partitioner.baselines.compare import baselines, equal_parameters
from partitioner.costs.roofline import estimate
from partitioner.errors import InfeasibleError
from partitioner.graph.ir import TracedGraph
from partitioner.models.spec import model_spec, trace_model
from partitioner.planning.build_problem import build_problem
from partitioner.search.devices import Devices
from partitioner.search.evaluate import check_placement
from partitioner.search.problem import Problem

# Megabytes per step of AsyncDiff's own hooks on sd15 (float16, guidance batch), counted with fake tensors.
SD15_BROADCAST_MB = {2: 64.9, 3: 72.8, 4: 64.9}


@pytest.fixture(scope="module")
def sd15() -> tuple[TracedGraph, Problem]:
    graph = trace_model(model_spec("sd15"))
    return graph, build_problem(graph, estimate(graph))


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


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_equal_parameters_are_about_equal_and_contiguous(sd15: tuple[TracedGraph, Problem], count: int) -> None:
    problem = sd15[1]
    placed = equal_parameters(problem, count)
    assert placed == sorted(placed)
    check_placement(problem, placed, count)
    held = {(placed[v], i) for i, v in zip(problem.reading_item.tolist(), problem.reading_node.tolist(), strict=True)}
    sizes = [sum(int(problem.item_parameter_bytes[i]) for k, i in held if k == component) for component in range(count)]
    assert max(sizes) <= 1.25 * sum(sizes) / count


def test_equal_parameters_need_as_many_parts(sd15: tuple[TracedGraph, Problem]) -> None:
    with pytest.raises(InfeasibleError):
        equal_parameters(sd15[1], 5000)


def test_all_baselines_where_they_exist(sd15: tuple[TracedGraph, Problem]) -> None:
    graph, problem = sd15
    assert list(baselines(graph, problem, Devices.equal(4))) == ["contiguous", "equal_parameters", "asyncdiff"]
    assert list(baselines(graph, problem, Devices.equal(8))) == ["contiguous", "equal_parameters"]
    assert baselines(graph, problem, Devices.equal(5000)) == {}
    four = baselines(graph, problem, Devices.equal(4))
    assert four["contiguous"].step_ms <= four["asyncdiff"].step_ms <= four["equal_parameters"].step_ms
    assert four["asyncdiff"].broadcast_bytes_per_step is not None
    assert four["contiguous"].broadcast_bytes_per_step is None
