"""GraphsOfCalls: which graphs a call is made by."""

from __future__ import annotations

import pytest

from runtime.driver.change_follower import LookFirst
from runtime.driver.traced_graphs import CallGraphs
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import Trajectory
from tests.support.toy_plans import DENOISER, KINDS


def graphs_of(engine: Engine, rows: int) -> CallGraphs:
    driver = engine._first
    return driver._graphs_of_calls.of(*driver.read((), Trajectory(rows=rows).inputs(0)))


@pytest.mark.parametrize(("rows", "parts"), [(2, 2), (4, 4), (1, 1)])
def test_a_call_is_split_into_as_many_micro_batches_as_divide_its_rows(rows: int, parts: int) -> None:
    options = EngineOptions(transport="emulation", exact=True, microbatches=4)
    with Engine(DENOISER, KINDS["folded"].plan, options) as engine:
        engine._first._follower.has_looked = True
        graphs = graphs_of(engine, rows)
        assert graphs.parts == parts
        assert (graphs.part is None) == (parts == 1)
        assert all(engine._first._distribution.has(built) for built in graphs.branches)
        assert graphs.part is None or engine._first._distribution.has(graphs.part)


def test_nothing_is_traced_or_given_before_the_denoiser_has_been_looked_at() -> None:
    with Engine(DENOISER, KINDS["folded"].plan, EngineOptions(transport="emulation")) as engine:
        planned = graphs_of(engine, 2)
        with pytest.raises(LookFirst):
            graphs_of(engine, 4)
        engine._first._follower.has_looked = True
        assert graphs_of(engine, 4) != planned
        assert graphs_of(engine, 2) == planned


@pytest.mark.parametrize(("rows", "branches"), [(2, 2), (4, 2), (3, 1)])
def test_branches_share_the_rows_that_can_be_shared_out(rows: int, branches: int) -> None:
    with Engine(DENOISER, KINDS["branches"].plan, EngineOptions(transport="emulation", exact=True)) as engine:
        engine._first._follower.has_looked = True
        graphs = graphs_of(engine, rows)
        assert len(graphs.branches) == branches
        shapes = [item.meta.shape for built in graphs.branches for item in built.graph.inputs if item.name == "x"]
        assert [shape[0] for shape in shapes] == [rows // branches] * branches
