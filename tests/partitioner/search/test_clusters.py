"""Borders stand where a cut is cheap and allowed, and levels are nested."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from partitioner.search.clusters import cluster_borders, fine_borders
from partitioner.search.coarsen import coarsen
from partitioner.search.problem import Problem
from tests.support.random_problems import problems, random_problem


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
