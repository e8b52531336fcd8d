"""Coarser levels have the figures of the finer ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.search.coarsen import coarsen
from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate
from partitioner.search.problem import Problem
from tests.support.random_problems import problems


@given(problems(), st.data())
def test_coarse_figures_are_fine_figures(problem: Problem, data: st.DataObject) -> None:
    borders = data.draw(st.sets(st.integers(1, problem.size - 1), min_size=1))
    coarse = coarsen(problem, borders)
    count = data.draw(st.integers(1, min(3, coarse.problem.size)))
    rest = [data.draw(st.integers(0, count - 1)) for _ in range(coarse.problem.size - count)]
    placed = np.array(data.draw(st.permutations([*range(count), *rest])))
    devices = Devices.equal(count, link_gb_per_s=1e-5, latency_ms=0.1)
    fine = evaluate(problem, coarse.spread(placed), devices, "async")
    same = evaluate(coarse.problem, placed, devices, "async")
    assert fine.step_ms == pytest.approx(same.step_ms)
    assert fine.staleness == pytest.approx(same.staleness)
    for a, b in zip(fine.components, same.components, strict=True):
        assert (a.receive_bytes, a.send_bytes, a.memory_bytes, a.macs) == (
            b.receive_bytes, b.send_bytes, b.memory_bytes, b.macs)  # fmt: skip
        assert a.load_ms == pytest.approx(b.load_ms)
