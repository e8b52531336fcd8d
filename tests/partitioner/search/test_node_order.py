"""Other execution orders are execution orders, with the figures of the first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate
from partitioner.search.node_order import depth_first_order, reordered
from partitioner.search.problem import Problem
from tests.support.random_problems import problems, random_problem


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
