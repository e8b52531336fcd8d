"""The searches find what trying everything finds, on hundreds of small random graphs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from partitioner.search.chains import ContiguousSearch
from partitioner.search.descent import refine
from partitioner.search.devices import Devices
from partitioner.search.evaluate import Evaluation, evaluate
from partitioner.search.folds import Fold, FoldedSearch
from partitioner.search.intervals import Pieces
from partitioner.search.mode import Mode
from partitioner.search.problem import Problem
from tests.support.random_problems import brute_force, is_contiguous, is_fold, random_devices, random_problem, score

WEIGHT = 0.01
SLACK = 1 + 1e-9
COUNTS = [1, 2, 3]


def unfold(problem: Problem, fold: Fold) -> np.ndarray:
    owner = np.full(problem.size, -1)
    for k in range(len(fold.device_of)):
        owner[fold.left[k] : fold.left[k + 1]] = k
        owner[fold.right[k + 1] : fold.right[k]] = k
    return owner


def least(found: list[Evaluation], cap_ms: float) -> float:
    return min((score(figures, WEIGHT) for figures in found if figures.step_ms <= cap_ms), default=math.inf)


@pytest.mark.parametrize("seed", range(150))
def test_contiguous_search_agrees_with_brute_force(seed: int) -> None:
    count = COUNTS[seed % 3]
    mode: Mode = "async" if seed % 2 else "lookahead"
    problem, devices = random_problem(seed), random_devices(seed, count)
    found = brute_force(problem, devices, mode, is_contiguous)
    search = ContiguousSearch(Pieces(problem), devices, mode)
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
        assert score(figures, WEIGHT) == pytest.approx(least(found, cap), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(150))
def test_folded_search_agrees_with_brute_force(seed: int) -> None:
    count = COUNTS[seed % 3]
    problem, devices = random_problem(seed), random_devices(seed, count)
    found = brute_force(problem, devices, "async", is_fold)
    fastest = min((figures.step_ms for figures in found), default=math.inf)
    widest = 1.5 * fastest * SLACK if math.isfinite(fastest) else 1e9
    search = FoldedSearch(Pieces(problem), devices, "async", widest)
    assert search.fastest_ms() == pytest.approx(fastest, rel=1e-9)
    for looser in (1.0, 1.1, 1.5):
        cap = fastest * looser * SLACK
        fold = search.best(min(cap, widest), WEIGHT)
        if fold is None:
            assert not found
            continue
        figures = evaluate(problem, unfold(problem, fold), devices, "async", fold.device_of)
        assert figures.feasible
        assert figures.step_ms <= cap
        assert score(figures, WEIGHT) == pytest.approx(least(found, cap), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_refining_never_makes_a_split_worse_and_keeps_it_a_fold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = COUNTS[seed % 3]
    problem = random_problem(seed, size=8)
    devices = Devices.equal(count, link_gb_per_s=1e-5)
    cuts = np.sort(rng.choice(np.arange(1, 8), count - 1, replace=False)).tolist()
    start = Fold((0, *cuts, 8), (8,) * (count + 1), tuple(range(count)))
    before = evaluate(problem, unfold(problem, start), devices, "async")
    cap = before.step_ms * float(rng.uniform(0.7, 1.2))
    fold = refine(Pieces(problem), start, devices, "async", cap, WEIGHT)
    after = evaluate(problem, unfold(problem, fold), devices, "async", fold.device_of)
    assert is_fold(tuple(unfold(problem, fold)))
    assert max(after.step_ms, cap) <= max(before.step_ms, cap) * SLACK
    if before.step_ms <= cap:
        assert score(after, WEIGHT) <= score(before, WEIGHT) * SLACK
