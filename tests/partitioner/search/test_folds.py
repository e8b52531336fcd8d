"""The search over folds finds what trying everything finds, on many small random graphs."""

from __future__ import annotations

import math

import pytest

from partitioner.search import chains, folds
from partitioner.search.evaluate import evaluate
from partitioner.search.folds import FoldedSearch, TooManyCandidatesError
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


@pytest.mark.parametrize("seed", range(20))
def test_of_many_kinds_of_devices_one_order_is_searched(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "MOST_MOVES", 0)
    problem, devices = random_problem(seed), random_devices(seed, 3)
    found = brute_force(problem, devices, "async", is_fold, order=tuple(range(3)))
    fastest = min((figures.step_ms for figures in found), default=math.inf)
    fold = FoldedSearch(Intervals(problem), devices, "async", 1e9).fastest()
    assert (fold is None) == (not found)
    if fold is not None:
        least_ms = evaluate(problem, unfold(problem, fold), devices, "async", fold.device_of).step_ms
        assert least_ms == pytest.approx(fastest, rel=1e-9)


def test_more_components_than_can_be_tried_in_every_state_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, devices = random_problem(0), random_devices(0, 3)
    monkeypatch.setattr(folds, "MOST_TRIED", 0)
    with pytest.raises(TooManyCandidatesError):
        FoldedSearch(Intervals(problem), devices, "async", 1e9)
    FoldedSearch(Intervals(problem), devices, "async", 1e9, whatever_it_takes=True)
