"""What is proved of a split: no placement beats its bound, and no search does."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from partitioner.errors import UsageError
from partitioner.search.certificate import Certificate, prove
from partitioner.search.chains import ContiguousSearch
from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate, lower_bound_ms
from partitioner.search.folds import FoldedSearch
from partitioner.search.intervals import Intervals
from partitioner.search.placement_program import fastest_placement
from partitioner.search.solver import Solver
from tests.support.random_problems import brute_force, random_problem, score, unfold

WEIGHT = 0.01
SLACK = 1 + 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_no_split_beats_the_program_and_no_chain_a_fold(seed: int) -> None:
    pytest.importorskip("highspy")
    problem, devices = random_problem(seed, size=7), Devices.equal(3, link_gb_per_s=1e-5)
    intervals = Intervals(problem)
    chains = ContiguousSearch(intervals, devices, "async")
    cap = chains.fastest_ms() * 1.1
    folds = FoldedSearch(intervals, devices, "async", cap)
    fastest_fold = folds.fastest()
    assert fastest_fold is not None
    of_fold = evaluate(problem, unfold(problem, fastest_fold), devices, "async", fastest_fold.device_of)
    found = fastest_placement(problem, devices, "async")
    assert found.step_ms <= of_fold.step_ms * SLACK <= chains.fastest_ms() * SLACK**2
    chain, fold = chains.best(cap, WEIGHT), folds.best(cap, WEIGHT)
    assert chain is not None
    assert fold is not None
    figures = evaluate(problem, np.repeat(range(3), np.diff(chain.borders)), devices, "async")
    least = evaluate(problem, unfold(problem, fold), devices, "async")
    assert score(least, WEIGHT) <= score(figures, WEIGHT) * SLACK


def test_certificate_says_proved_or_the_gap() -> None:
    pytest.importorskip("highspy")
    problem, devices = random_problem(3, size=8), Devices.equal(2)
    split = Solver(problem).solve(devices, "async", epsilon=0.0)
    certificate = prove(problem, devices, "async", split)
    found = min(f.step_ms for f in brute_force(problem, devices, "async", lambda _: True))
    assert certificate.step_ms == split.evaluation.step_ms
    assert lower_bound_ms(problem, devices) <= certificate.bound_ms * SLACK
    assert certificate.bound_ms == pytest.approx(found, rel=1e-6)
    assert str(certificate) == ("proved" if certificate.gap <= 1e-4 else f"gap {certificate.gap:.2%}")
    assert str(Certificate(step_ms=103.0, bound_ms=100.0, clusters=8)) == "gap 3.00%"
    assert str(Certificate(step_ms=100.0, bound_ms=100.0, clusters=8)) == "proved"


def test_bound_holds_when_time_is_up() -> None:
    pytest.importorskip("highspy")
    problem, devices = random_problem(5, size=8), Devices.equal(3)
    split = Solver(problem).solve(devices, "async")
    certificate = prove(problem, devices, "async", split, time_limit_s=0.0)
    assert lower_bound_ms(problem, devices) <= certificate.bound_ms * SLACK
    assert certificate.bound_ms <= split.evaluation.step_ms
    assert math.isfinite(certificate.gap)


def test_missing_highspy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    problem, devices = random_problem(3, size=4), Devices.equal(2)
    split = Solver(problem).solve(devices, "async")
    with pytest.raises(UsageError, match="pip install highspy"):
        prove(problem, devices, "async", split)
