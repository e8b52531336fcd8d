"""Distribution: a rank is given each component and each parameter once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from runtime.driver.call_arguments import CallReader
from runtime.driver.distribution import Distribution
from runtime.driver.traced_graphs import TracedGraphs
from runtime.options import EngineOptions
from runtime.ranks.base import DenoiserRanks
from runtime.ranks.start import start_ranks
from runtime.transport.weights import Weights
from runtime.worker.commands import Build, Load
from tests.support.engines import Trajectory, toy_plan
from tests.support.toy_plans import DENOISER


def test_a_second_graph_brings_no_parameter_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, options = toy_plan(DENOISER, 2), EngineOptions(transport="emulation")
    started = start_ranks([plan], options, ["cpu"] * 2, ["cpu"])
    ranks = DenoiserRanks(started, 0)
    told: list[Any] = []
    command = ranks.command
    monkeypatch.setattr(ranks, "command", lambda rank, what: (told.append(what), command(rank, what)))
    calls = CallReader(DENOISER, plan)
    graphs = TracedGraphs(DENOISER, plan, calls, itertools.count(), most=32, warned=set())
    distribution = Distribution(plan, options, ranks, Weights(DENOISER), itertools.count(1))

    first = graphs.planned()
    distribution.give(first)
    build, load = told
    assert isinstance(build, Build)
    assert isinstance(load, Load)
    assert {p.path for p in load.parameters} == {p.path for p in first.specs[0].parameters}

    distribution.give(first)
    assert len(told) == 2, "a graph is given once"

    other = graphs.graph_of(*calls.read((), Trajectory(rows=4).inputs(0)), lambda: None)
    distribution.give(other)
    build, load = told[2:]
    assert (build.table, load.parameters, load.stored) == (other.table, (), ())
    assert distribution.preamble_of(other) is not distribution.preamble_of(first)
    started.close()
