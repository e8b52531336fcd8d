"""What a border sends; problems that are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from partitioner.errors import UsageError
from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate
from partitioner.search.problem import Problem
from tests.support.random_problems import problems, random_problem


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
