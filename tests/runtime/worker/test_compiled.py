"""Compiled segments compute what the lowered ones do, compile once, and name a failing node all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import partitioner
from partitioner.graph.ir import TracedGraph
from runtime.engine import Engine
from runtime.errors import ComponentFailed, NonFiniteValue
from runtime.options import EngineOptions
from runtime.worker.component import Component
from runtime.worker.segment import Segment
from runtime.worker.specs import build_specs
from tests.support.engines import Trajectory, contiguous, equal, largest_difference, toy, toy_graph, toy_plan

CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of values of order 1; fused operators round differently


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Inside it a compilation raises."""
    torch.compiler.set_stance("fail_on_recompile")
    try:
        yield
    finally:
        torch.compiler.set_stance("default")


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["emulation", "threads", "processes"])
def test_a_compiled_engine_computes_what_the_engine_does(transport: str) -> None:
    plan, trajectory = toy_plan(toy(), 2, warmup=2), Trajectory(5)
    with Engine(toy(), plan, EngineOptions(transport="emulation")) as engine:
        expected = trajectory.through(engine)
    with Engine(toy(), plan, EngineOptions(transport=transport, compile=True)) as engine:
        first = trajectory.through(engine)
        assert equal(first, trajectory.through(engine))
    assert largest_difference(first, expected) < TOLERANCE
    assert not equal(first, expected), "as if nothing had been compiled"


@pytest.mark.slow
def test_every_segment_is_compiled_once() -> None:
    options = EngineOptions(transport="emulation", compile=True)
    plan = toy_plan(toy(), 3, warmup=2, predictor="adaptive")
    with Engine(toy(), plan, options) as engine, nothing_compiled(), pytest.raises(ComponentFailed, match="recompile"):
        Trajectory(1).through(engine)
    with Engine(toy(), plan, options) as engine:
        Trajectory(1).through(engine)  # ten segments: more than torch compiles of one function
        with nothing_compiled():
            assert len(Trajectory(seed=1).through(engine)) == 7


def test_only_where_asked() -> None:
    graph = toy_graph(toy())
    specs, _ = build_specs(graph, contiguous(graph, 2), 2)
    plain, fast = Component(specs[0], CPU), Component(specs[0], CPU, compile=True)
    assert all(segment._run is segment._bound.call for segment in plain.segments.values())
    assert not any(segment._run is segment._bound.call for segment in fast.segments.values())


class Chain(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return ((x + 1).log().reshape(3, 2).exp(),)


def chain() -> tuple[Segment, TracedGraph]:
    graph = partitioner.trace(Chain().eval(), {"x": torch.zeros(2, 3)}, {"x": "latent"})
    segment = Segment(graph.nodes, ["x"], graph.result_values, CPU)
    segment.compile()
    return segment, graph


def test_a_failing_node_is_named() -> None:
    segment, _ = chain()
    values = {"x": torch.zeros(2, 5)}
    with pytest.raises(Exception, match="shape") as caught:
        segment(values)
    assert segment.failing_node(caught.value, values) == "/reshape.0"
    assert segment.failing_node(caught.value, {"x": torch.zeros(2, 3)}) is None, "these do not fail"


@pytest.mark.slow
def test_a_node_that_makes_nan_is_named() -> None:
    trajectory = Trajectory()
    trajectory.latents[1] = torch.full_like(trajectory.latents[1], float("inf"))
    options = EngineOptions(transport="emulation", compile=True, check_finite=True)
    with Engine(toy(), toy_plan(toy(), 2), options) as engine, pytest.raises(NonFiniteValue) as caught:
        trajectory.through(engine)
    assert caught.value.step == 1
    assert caught.value.node is not None
