"""Micro-batches: exact calls in parts give what the whole gives, and what lags behind them too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from partitioner.graph.nodes import TensorMeta
from partitioner.plan.timeline import COMPUTE
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.transport.local import LocalMailbox
from runtime.transport.mailbox import Expected, MessageKey
from runtime.worker.commands import Join
from runtime.worker.microbatches import PartsOfMessages, join, joined_dim
from runtime.worker.predictor import PREDICTORS
from tests.support.engines import Trajectory, contiguous, equal, folded, largest_difference, run, toy, toy_plan

pytestmark = pytest.mark.usefixtures("trace_once")

DENOISER = toy()
ROUNDING = 2e-6  # outputs are of the order of 1


def test_the_dimension_that_is_split() -> None:
    assert joined_dim((4, 5), (2, 5), 2) == 0
    assert joined_dim((3, 8, 5), (3, 2, 5), 4) == 1
    assert joined_dim((4, 5), (4, 5), 2) is None
    assert joined_dim((4, 6), (2, 3), 2) is None
    assert joined_dim((4, 5), (2, 5), 4) is None
    assert joined_dim((4, 5), (4, 5, 1), 2) is None


def test_parts_are_joined_in_order() -> None:
    whole = torch.arange(24.0).reshape(3, 4, 2)
    assert torch.equal(join(whole.chunk(2, dim=1), (3, 4, 2)), whole)


def test_parts_that_arrive_in_any_order_become_one_message() -> None:
    mailbox = LocalMailbox(0, [], torch.device("cpu"))
    mailbox.register(0, [Expected("whole", TensorMeta((3, 4, 2), (8, 2, 1), "float32"))])
    whole, parts = torch.arange(24.0).reshape(3, 4, 2), PartsOfMessages()
    of_whole = MessageKey(table=0, wire=0, context=0, step=5)
    for part, tensor in reversed(list(enumerate(whole.chunk(2, dim=1)))):
        assert not mailbox.ready(of_whole)
        key = MessageKey(table=1, wire=0, context=1 + part, step=5)
        parts.take(Join(table=0, context=0, part=part, parts=2), key, tensor, mailbox)
    assert torch.equal(mailbox.take(of_whole), whole)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("placed", [contiguous, folded])
@pytest.mark.parametrize("components", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_warm_up_in_parts_changes_nothing_but_the_last_bits(
    components: int, placed: Callable[..., dict[str, int]], predictor: str
) -> None:
    trajectory = Trajectory()
    plan = toy_plan(DENOISER, components, placed=placed, predictor=predictor, warmup=4)
    whole, parts = run(DENOISER, plan, trajectory), run(DENOISER, plan, trajectory, microbatches=2)
    assert largest_difference(parts, whole) < ROUNDING
    assert largest_difference(whole[4:], trajectory.through(DENOISER)[4:]) > 100 * ROUNDING, "nothing was lagged"
    # each row went through the denoiser alone
    alone = [torch.cat(rows) for rows in zip(*(half.through(DENOISER) for half in trajectory.halves(2)), strict=True)]
    assert equal(parts[:4], alone[:4])


@pytest.mark.parametrize("rows", [2, 4, 6])
def test_exact_mode_in_parts(rows: int) -> None:
    trajectory = Trajectory(rows=rows)
    plan = toy_plan(DENOISER, 3, placed=folded)
    parts = run(DENOISER, plan, trajectory, exact=True, microbatches=2)
    assert largest_difference(parts, trajectory.through(DENOISER)) < ROUNDING


def test_rows_that_do_not_divide_evenly_stay_together() -> None:
    trajectory = Trajectory(rows=3)
    plan = toy_plan(DENOISER, 2)
    assert equal(run(DENOISER, plan, trajectory, microbatches=2), run(DENOISER, plan, trajectory))


KINDS: dict[str, dict[str, Any]] = {
    "chain of 2": {"components": 2, "predictor": "hold"},
    "fold of 2": {"components": 2, "placed": folded, "predictor": "adaptive"},
    "fold of 3": {"components": 3, "placed": folded, "predictor": "linear"},
    "periods": {"components": 3, "placed": folded, "periods": (2, 2, 1), "predictor": "adaptive"},
    "branches": {"components": 2, "branches": 2, "predictor": "linear"},
}


@pytest.mark.parametrize("transport", ["threads", "processes"])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in ("periods", "branches") else []) for kind in KINDS]
)
def test_parts_are_the_same_on_every_transport(kind: str, transport: str) -> None:
    options = dict(KINDS[kind])
    rows = 2 * options.get("branches", 1)
    plan = toy_plan(DENOISER, warmup=3, **options)
    first, second = Trajectory(rows=rows), Trajectory(rows=rows, seed=1)
    expected = [run(DENOISER, plan, one, microbatches=2) for one in (first, second)]
    with Engine(DENOISER, plan, EngineOptions(transport=transport, microbatches=2)) as engine:
        assert equal(first.through(engine), expected[0])
        assert equal(second.through(engine), expected[1])
        _abandon(engine, first, calls=2)  # within the warm-up
        assert equal(second.through(engine), expected[1])
        engine.in_context("other")
        assert equal(first.through(engine), expected[0])


def _abandon(engine: Engine, trajectory: Trajectory, calls: int) -> None:
    for call in range(calls):
        engine(**trajectory.inputs(call))


@pytest.mark.parametrize("transport", ["emulation", "processes"])
@pytest.mark.parametrize("components", [2, 3])
def test_look_ahead_after_a_warm_up_in_parts(components: int, transport: str) -> None:
    # latents on a line in the noise level, which look-ahead foresees exactly
    sigmas = torch.linspace(10, 1, 9)
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[*sigmas.tolist(), 0.0])
    trajectory = Trajectory(calls=9)
    start, slope = trajectory.latents[0].clone(), trajectory.latents[1] - trajectory.latents[0]
    trajectory.latents = [(start + s * slope) / math.sqrt(1 + float(s) ** 2) for s in sigmas]
    trajectory.timesteps = list(scheduler.timesteps)
    plan = toy_plan(DENOISER, components, mode="lookahead", warmup=4)
    options = EngineOptions(transport=transport, microbatches=2)
    with Engine(DENOISER, plan, options, scheduler=lambda: scheduler) as engine:
        got = trajectory.through(engine)
        assert engine.stats.exact_steps == 4
    assert largest_difference(got, trajectory.through(DENOISER)) < 1e-4


def test_components_work_on_different_parts_at_the_same_time() -> None:
    """The order in which an evaluation's parts begin is the schedule of a pipe, also where a fold closes it."""
    plan = toy_plan(DENOISER, 2, placed=folded)
    with Engine(
        DENOISER, plan, EngineOptions(transport="emulation", exact=True, microbatches=2, record=True)
    ) as engine:
        Trajectory(calls=1).through(engine)
        spans = [span for span in engine.timeline().spans if span.rank == 0 and span.kind == COMPUTE]
    names = [span.name.removeprefix("step 0: ") for span in spans]
    first, last = names[0], names[-1]
    ends = [name for name in names if name in (first, last)]
    assert ends == [first, first, last, last], "both parts enter the pipe before the first comes back"


def test_a_plan_says_in_how_many_parts_exact_calls_are_made() -> None:
    trajectory = Trajectory(rows=2)
    plan = toy_plan(DENOISER, 2, warmup=4)
    parted = plan.model_copy(update={"microbatches": 2})
    assert equal(run(DENOISER, parted, trajectory), run(DENOISER, plan, trajectory, microbatches=2))
    assert not equal(run(DENOISER, parted, trajectory), run(DENOISER, plan, trajectory))
    assert equal(run(DENOISER, parted, trajectory, microbatches=1), run(DENOISER, plan, trajectory))
    assert equal(run(DENOISER, parted, trajectory, exact=True), run(DENOISER, plan, trajectory, exact=True))


@pytest.mark.parametrize(("rows", "parts"), [(2, 2), (4, 4), (6, 2), (8, 8), (12, 4), (3, 1)])
def test_other_rows_than_planned_are_in_as_many_parts_as_divide_them(rows: int, parts: int) -> None:
    trajectory = Trajectory(rows=rows, calls=2)
    plan = toy_plan(DENOISER, 2, warmup=4).model_copy(update={"microbatches": 8})
    assert equal(run(DENOISER, plan, trajectory), run(DENOISER, plan, trajectory, microbatches=parts))
    with Engine(DENOISER, plan, EngineOptions(transport="emulation", record=True)) as engine:
        Trajectory(rows=rows, calls=1).through(engine)
        names = [span.name for span in engine.timeline().spans if span.rank == 0 and span.kind == COMPUTE]
    assert names.count(names[0]) == parts
