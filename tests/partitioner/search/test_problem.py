"""Coarser levels have the figures of the finer ones; borders stand where they may; other orders are orders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.errors import UsageError
from partitioner.search.clusters import cluster_borders, fine_borders
from partitioner.search.coarsen import coarsen
from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate
from partitioner.search.node_order import depth_first_order, reordered
from partitioner.search.problem import Problem
from tests.support.random_problems import problems, random_problem


@given(problems(), st.data())
def test_coarse_figures_are_fine_figures(problem: Problem, data: st.DataObject) -> None:
    borders = data.draw(st.sets(st.integers(1, problem.size - 1), min_size=1))
    coarse = coarsen(problem, borders)
    count = data.draw(st.integers(1, min(3, coarse.problem.size)))
    rest = [data.draw(st.integers(0, count - 1)) for _ in range(coarse.problem.size - count)]
    placed = np.array(data.draw(st.permutations([*range(count), *rest])))
    devices = Devices.equal(count, link_gb_per_s=1e-5, latency_ms=0.1)
    fine = evaluate(problem, coarse.spread(placed), devices, "async")
    same = evaluate(coarse.problem, placed, devices, "async")
    assert fine.step_ms == pytest.approx(same.step_ms)
    assert fine.staleness == pytest.approx(same.staleness)
    for a, b in zip(fine.components, same.components, strict=True):
        assert (a.receive_bytes, a.send_bytes, a.memory_bytes, a.macs) == (
            b.receive_bytes, b.send_bytes, b.memory_bytes, b.macs)  # fmt: skip
        assert a.load_ms == pytest.approx(b.load_ms)


@given(problems())
def test_live_bytes_are_what_a_border_sends(problem: Problem) -> None:
    live, repeated = problem.live_bytes(), problem.repeated_bytes()
    for p in range(1, problem.size):
        figures = evaluate(problem, [0] * p + [1] * (problem.size - p), Devices.equal(2), "async")
        assert figures.bytes_per_step <= live[p]
        read = {b.value for b in figures.boundaries}
        unread = [
            u
            for u, name in enumerate(problem.value_names)
            if name not in read and problem.value_producer[u] < p <= problem.edge_reader[problem.edge_value == u].max()
        ]
        assert not unread
        assert figures.bytes_per_step == live[p]
        assert figures.repeated_bytes == repeated[p]


def test_borders_go_where_a_cut_is_cheapest() -> None:
    #  0 heavy -> 1 light (halves the value) -> 2 light (doubles it) -> 3 heavy: the border stands before node 2
    problem = replace(
        random_problem(0, size=4),
        cost_ms=np.array([1.0, 0.0, 0.0, 1.0]),
        value_names=("n0", "n1", "n2"),
        value_producer=np.array([0, 1, 2]),
        value_bytes=np.array([100, 50, 100]),
        edge_value=np.array([0, 1, 2]),
        edge_reader=np.array([1, 2, 3]),
        edge_staleness=np.zeros(3),
        light=np.array([False, True, True, False]),
        reading_item=np.zeros(0, dtype=np.int64),
        reading_node=np.zeros(0, dtype=np.int64),
    )
    assert fine_borders(problem).tolist() == [0, 2, 4]
    slow = replace(problem, cost_ms=np.array([1.0, 0.5, 0.0, 1.0]))  # light by name, but worth a border of its own
    assert fine_borders(slow).tolist() == [0, 1, 2, 4]


def test_no_border_within_a_unit() -> None:
    problem = replace(random_problem(1, size=8), together=np.array([-1, 0, -1, 0, 1, 1, -1, -1]))
    assert fine_borders(problem).tolist() == [0, 1, 4, 6, 7, 8]


@given(problems(), st.integers(1, 8), st.integers(1, 8))
def test_levels_are_nested(problem: Problem, few: int, many: int) -> None:
    few, many = sorted((few, many))
    coarse, fine = (cluster_borders(problem, limit).tolist() for limit in (few, many))
    assert {0, problem.size} <= set(coarse) <= set(range(problem.size + 1))
    assert len(coarse) - 1 <= few
    middle = coarsen(problem, fine)
    nested = cluster_borders(middle.problem, few)
    assert set(middle.borders[nested].tolist()) <= set(fine)


@given(problems())
def test_depth_first_order_is_an_execution_order(problem: Problem) -> None:
    order = depth_first_order(problem)
    assert sorted(order.tolist()) == list(range(problem.size))
    assert order[-1] == problem.size - 1
    other = reordered(problem, order)  # refuses edges that point backwards
    place = np.arange(problem.size) % 2
    devices = Devices.equal(2)
    here, there = (evaluate(problem, place, devices, "async"), evaluate(other, place[order], devices, "async"))
    assert here.bytes_per_step == there.bytes_per_step
    assert here.staleness == pytest.approx(there.staleness)
    assert here.compute_ms == pytest.approx(there.compute_ms)


def test_depth_first_order_unravels_branches() -> None:
    #  0 -> 1, 2; 1 -> 3 -> 5 and 2 -> 4 -> 5: branches in turn become branches in a row
    edges = [(0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 5)]
    problem = replace(
        random_problem(0, size=6),
        value_names=tuple("abcde"),
        value_producer=np.arange(5),
        value_bytes=np.ones(5, dtype=np.int64),
        edge_value=np.array([u for u, _ in edges]),
        edge_reader=np.array([v for _, v in edges]),
        edge_staleness=np.zeros(6),
        reading_item=np.zeros(0, dtype=np.int64),
        reading_node=np.zeros(0, dtype=np.int64),
    )
    assert depth_first_order(problem).tolist() == [0, 1, 3, 2, 4, 5]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cost_ms": np.array([1.0, -1.0])}, UsageError, "not negative"),
        ({"cost_ms": np.array([1.0, np.nan])}, UsageError, "finite"),
        ({"macs": np.array([1])}, ValueError, "lengths"),
        ({"edge_reader": np.array([0])}, ValueError, "execution order"),
        ({"names": (), "cost_ms": np.zeros(0)}, UsageError, "nothing to split"),
    ],
)
def test_nonsense_is_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    problem = replace(
        random_problem(0, size=2), edge_value=np.array([0]), edge_reader=np.array([1]), edge_staleness=np.array([0.5])
    )
    with pytest.raises(error, match=message):
        replace(problem, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "figures", "message"),
    [
        (0, {}, "at least one"),
        (2, {"speed": 0.0}, "above zero"),
        (2, {"memory_bytes": -1.0}, "above zero"),
        (2, {"link_gb_per_s": 0.0}, "above zero"),
        (2, {"latency_ms": -0.1}, "not negative"),
    ],
)
def test_nonsense_devices_are_refused(count: int, figures: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Devices.equal(count, **figures)  # type: ignore[arg-type]


def test_kinds_of_devices() -> None:
    devices = Devices(("a", "b", "a"), (1.0, 2.0, 1.0), (1.0,) * 3, (1.0,) * 3, (0.0,) * 3)
    assert devices.kinds == ((0, 2), (1,))
    assert devices.reordered((1, 0, 2)).names == ("b", "a", "a")
