"""Baselines: contiguous, equal parameters, and AsyncDiff's where there is one."""

from __future__ import annotations

import pytest

from partitioner.baselines.compare import baselines, equal_parameters
from partitioner.errors import InfeasibleError
from partitioner.graph.ir import TracedGraph
from partitioner.search.devices import Devices
from partitioner.search.evaluate import check_placement
from partitioner.search.problem import Problem


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
