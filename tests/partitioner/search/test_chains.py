"""The search over contiguous splits finds what trying everything finds, on many small random graphs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from partitioner.search import chains
from partitioner.search.chains import ContiguousSearch
from partitioner.search.evaluate import evaluate
from partitioner.search.intervals import Intervals
from partitioner.search.mode import Mode
from tests.support.random_problems import (
    brute_force,
    is_contiguous,
    least_score,
    random_devices,
    random_problem,
    score,
)

WEIGHT = 0.01
SLACK = 1 + 1e-9
COUNTS = [1, 2, 3]


@pytest.mark.parametrize("seed", range(150))
def test_contiguous_search_agrees_with_brute_force(seed: int) -> None:
    count = COUNTS[seed % 3]
    mode: Mode = "async" if seed % 2 else "lookahead"
    problem, devices = random_problem(seed), random_devices(seed, count)
    found = brute_force(problem, devices, mode, is_contiguous)
    search = ContiguousSearch(Intervals(problem), devices, mode)
    fastest = min((figures.step_ms for figures in found), default=math.inf)
    assert search.fastest_ms() == pytest.approx(fastest, rel=1e-9)
    for looser in (1.0, 1.1, 1.5):
        cap = fastest * looser * SLACK
        chain = search.best(cap, WEIGHT)
        if chain is None:
            assert not found
            continue
        assignment = np.repeat(np.arange(count), np.diff(chain.borders))
        figures = evaluate(problem, assignment, devices, mode, chain.device_of)
        assert figures.feasible
        assert figures.step_ms <= cap
        assert score(figures, WEIGHT) == pytest.approx(least_score(found, cap, WEIGHT), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_of_many_kinds_of_devices_one_order_is_searched(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their states would be too many."""
    monkeypatch.setattr(chains, "MOST_MOVES", 0)
    problem, devices = random_problem(seed), random_devices(seed, 3)
    in_order = tuple(range(3))
    found = brute_force(problem, devices, "async", is_contiguous, order=in_order)
    fastest = min((figures.step_ms for figures in found), default=math.inf)
    search = ContiguousSearch(Intervals(problem), devices, "async")
    assert search.fastest_ms() == pytest.approx(fastest, rel=1e-9)
    chain = search.best(fastest * SLACK, WEIGHT)
    assert (chain is None) == (not found)
    assert chain is None or [devices.figures(d) for d in chain.device_of] == [devices.figures(d) for d in in_order]
