"""METIS's start: fewer bytes where branches run in parallel, and the same splits as ever where it is not installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from partitioner.search.devices import Devices
from partitioner.search.metis import metis_placement
from partitioner.search.problem import Problem
from partitioner.search.solver import Solver

WIDTH, LENGTH = 6, 12


def branchy(seed: int) -> Problem:
    """WIDTH chains of LENGTH nodes between one node and another, in turn in execution order."""
    rng = np.random.default_rng(seed)
    last, edges, n = [0] * WIDTH, [], 1
    for _ in range(LENGTH):
        for branch in range(WIDTH):
            edges.append((last[branch], n))
            last[branch] = n
            n += 1
    edges += [(node, n) for node in last]
    n += 1
    cost = rng.uniform(0.5, 2.0, n)
    cost[[0, -1]] = 0.1
    none = np.zeros(0, dtype=np.int64)
    return Problem(
        names=tuple(f"n{v}" for v in range(n)),
        cost_ms=cost,
        macs=np.zeros(n, dtype=np.int64),
        activation_bytes=np.full(n, 1000),
        together=np.full(n, -1),
        light=np.zeros(n, dtype=np.bool_),
        value_names=tuple(f"n{v}" for v in range(n - 1)),
        value_producer=np.arange(n - 1),
        value_bytes=rng.integers(1, 100, n - 1) * 1000,
        edge_value=np.array([u for u, _ in edges]),
        edge_reader=np.array([v for _, v in edges]),
        edge_staleness=np.full(len(edges), 0.1),
        item_cost_ms=np.zeros(0),
        item_macs=none,
        item_bytes=none,
        item_parameter_bytes=none,
        reading_item=none,
        reading_node=none,
    )


def test_branches_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymetis")
    problems, devices = [branchy(seed) for seed in range(6)], Devices.equal(2)
    found = [Solver(problem).solve(devices, "async", byte_weight=1e-6) for problem in problems]
    monkeypatch.setitem(sys.modules, "pymetis", None)
    without = [Solver(problem).solve(devices, "async", byte_weight=1e-6) for problem in problems]
    fewer = 0
    for split, other in zip(found, without, strict=True):
        assert split.score(1e-6) <= other.score(1e-6)
        assert split.evaluation.step_ms <= 1.005 * 1.0001 * other.evaluation.step_ms
        fewer += split.evaluation.bytes_per_step < other.evaluation.bytes_per_step / 2
    assert fewer >= 3


def test_load_follows_speed() -> None:
    pytest.importorskip("pymetis")
    problem = branchy(0)
    devices = Devices(("a", "b"), (1.0, 3.0), (np.inf,) * 2, (np.inf,) * 2, (0.0,) * 2)
    placed = metis_placement(problem, devices)
    assert placed is not None
    assert problem.cost_ms[placed == 1].sum() / problem.total_ms == pytest.approx(0.75, abs=0.03)


def test_without_pymetis_there_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    assert metis_placement(branchy(0), Devices.equal(2)) is None
    assert Solver(branchy(0)).solve(Devices.equal(2), "async").form in {"contiguous", "folded", "reordered"}
