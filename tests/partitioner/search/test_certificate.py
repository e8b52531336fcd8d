"""The program over all placements finds what trying them all finds, and no search beats it."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from partitioner.errors import UsageError
from partitioner.search.certificate import Certificate, FreeProgram, prove
from partitioner.search.chains import ContiguousSearch
from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate, lower_bound_ms
from partitioner.search.folds import FoldedSearch
from partitioner.search.intervals import Pieces
from partitioner.search.mode import Mode
from partitioner.search.solver import solve
from tests.support.random_problems import brute_force, random_devices, random_problem, score

WEIGHT = 0.01
SLACK = 1 + 1e-6


@pytest.mark.parametrize("seed", range(40))
def test_program_agrees_with_trying_all_placements(seed: int) -> None:
    pytest.importorskip("highspy")
    count = 2 + seed % 2
    mode: Mode = "lookahead" if seed % 4 == 0 else "async"
    problem = random_problem(seed, size=3 + seed % 4)
    devices = random_devices(seed, count) if mode == "async" else Devices.equal(count, link_gb_per_s=1e-5)
    found = brute_force(problem, devices, mode, lambda _: True)
    program = FreeProgram(problem, devices, mode)
    fastest = program.fastest()
    if not found:
        assert fastest.assignment is None
        return
    least_ms = min(figures.step_ms for figures in found)
    assert fastest.value == pytest.approx(least_ms, rel=1e-6, abs=1e-9)
    assert fastest.assignment is not None
    figures = evaluate(problem, fastest.assignment, devices, mode)
    assert figures.step_ms == pytest.approx(least_ms, rel=1e-6, abs=1e-9)
    cap = least_ms * 1.2 * SLACK
    best = program.best(cap, WEIGHT)
    held_once = sum(int(problem.item_bytes[i]) for i in set(problem.reading_item.tolist()))
    least = min(score(f, WEIGHT) for f in found if f.step_ms <= cap) + WEIGHT * held_once
    assert best.value == pytest.approx(least, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_free_is_at_most_folded_is_at_most_contiguous(seed: int) -> None:
    pytest.importorskip("highspy")
    problem, devices = random_problem(seed, size=7), Devices.equal(3, link_gb_per_s=1e-5)
    pieces = Pieces(problem)
    chains = ContiguousSearch(pieces, devices, "async")
    cap = chains.fastest_ms() * 1.1
    folds = FoldedSearch(pieces, devices, "async", cap)
    program = FreeProgram(problem, devices, "async")
    assert program.fastest().value <= folds.fastest_ms() * SLACK <= chains.fastest_ms() * SLACK**2
    chain, fold = chains.best(cap, WEIGHT), folds.best(cap, WEIGHT)
    assert chain is not None
    assert fold is not None
    owner = np.empty(7, dtype=np.int64)
    for k in range(3):
        owner[fold.left[k] : fold.left[k + 1]] = owner[fold.right[k + 1] : fold.right[k]] = k
    once = WEIGHT * sum(int(problem.item_bytes[i]) for i in set(problem.reading_item.tolist()))
    of_chain = once + score(evaluate(problem, np.repeat(range(3), np.diff(chain.borders)), devices, "async"), WEIGHT)
    of_fold = once + score(evaluate(problem, owner, devices, "async"), WEIGHT)
    assert program.best(cap, WEIGHT).value <= of_fold * SLACK + 1e-6
    assert of_fold <= of_chain * SLACK


def test_certificate_says_proved_or_the_gap() -> None:
    pytest.importorskip("highspy")
    problem, devices = random_problem(3, size=8), Devices.equal(2)
    split = solve(problem, devices, "async", epsilon=0.0)
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
    split = solve(problem, devices, "async")
    certificate = prove(problem, devices, "async", split, time_limit_s=0.0)
    assert lower_bound_ms(problem, devices) <= certificate.bound_ms * SLACK
    assert certificate.bound_ms <= split.evaluation.step_ms
    assert math.isfinite(certificate.gap)


def test_missing_highspy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    problem, devices = random_problem(3, size=4), Devices.equal(2)
    split = solve(problem, devices, "async")
    with pytest.raises(UsageError, match="pip install highspy"):
        prove(problem, devices, "async", split)
