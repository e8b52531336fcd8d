"""The search over folds finds what trying everything finds, on many small random graphs."""

from __future__ import annotations

import math

import pytest

from partitioner.search.evaluate import evaluate
from partitioner.search.folds import FoldedSearch
from partitioner.search.intervals import Intervals
from tests.support.random_problems import (
    brute_force,
    is_fold,
    least_score,
    random_devices,
    random_problem,
    score,
    unfold,
)

WEIGHT = 0.01
SLACK = 1 + 1e-9
COUNTS = [1, 2, 3]


@pytest.mark.parametrize("seed", range(150))
def test_folded_search_agrees_with_brute_force(seed: int) -> None:
    count = COUNTS[seed % 3]
    problem, devices = random_problem(seed), random_devices(seed, count)
    found = brute_force(problem, devices, "async", is_fold)
    fastest = min((figures.step_ms for figures in found), default=math.inf)
    widest = 1.5 * fastest * SLACK if math.isfinite(fastest) else 1e9
    search = FoldedSearch(Intervals(problem), devices, "async", widest)
    first = search.fastest()
    assert (first is None) == (not found)
    if first is not None:
        least_ms = evaluate(problem, unfold(problem, first), devices, "async", first.device_of).step_ms
        assert least_ms == pytest.approx(fastest, rel=1e-9)
    for looser in (1.0, 1.1, 1.5):
        cap = fastest * looser * SLACK
        fold = search.best(min(cap, widest), WEIGHT)
        if fold is None:
            assert not found
            continue
        figures = evaluate(problem, unfold(problem, fold), devices, "async", fold.device_of)
        assert figures.feasible
        assert figures.step_ms <= cap
        assert score(figures, WEIGHT) == pytest.approx(least_score(found, cap, WEIGHT), rel=1e-9, abs=1e-12)
