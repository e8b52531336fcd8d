"""The program over all placements finds what trying them all finds."""

from __future__ import annotations

import pytest

from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate
from partitioner.search.mode import Mode
from partitioner.search.placement_program import fastest_placement
from tests.support.random_problems import brute_force, random_devices, random_problem


@pytest.mark.parametrize("seed", range(40))
def test_program_agrees_with_trying_all_placements(seed: int) -> None:
    pytest.importorskip("highspy")
    count = 2 + seed % 2
    mode: Mode = "lookahead" if seed % 4 == 0 else "async"
    problem = random_problem(seed, size=3 + seed % 4)
    devices = random_devices(seed, count) if mode == "async" else Devices.equal(count, link_gb_per_s=1e-5)
    found = brute_force(problem, devices, mode, lambda _: True)
    fastest = fastest_placement(problem, devices, mode)
    if not found:
        assert fastest.assignment is None
        return
    least_ms = min(figures.step_ms for figures in found)
    assert fastest.step_ms == pytest.approx(least_ms, rel=1e-6, abs=1e-9)
    assert fastest.assignment is not None
    figures = evaluate(problem, fastest.assignment, devices, mode)
    assert figures.step_ms == pytest.approx(least_ms, rel=1e-6, abs=1e-9)
