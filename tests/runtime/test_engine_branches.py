"""Engine: rows of a batch, shared out to any number of branches, on every transport."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import Trajectory, contiguous, equal, largest_difference, plan_of, reference, toy_graph
from tests.support.toy_plans import DENOISER

pytestmark = pytest.mark.usefixtures("trace_once")

TRANSPORTS = ["emulation", "threads", pytest.param("processes", marks=pytest.mark.processes)]
CALLS = 6


def parts_of(trajectory: Trajectory, rows: Sequence[int]) -> list[Trajectory]:
    """The trajectories of branches with so many rows each."""
    made = [Trajectory(calls=CALLS) for _ in rows]
    for index, part in enumerate(made):
        part.latents = [latent.split(list(rows))[index] for latent in trajectory.latents]
        part.context = trajectory.context.split(list(rows))[index]
    return made


@pytest.mark.parametrize(
    ("transport", "components", "shares"),
    [
        ("emulation", 1, (1, 1, 1, 1)),
        ("emulation", 2, (1, 1, 1, 1)),
        ("threads", 1, (3, 1)),
        ("threads", 2, (1, 2, 1)),
        pytest.param("processes", 2, (1, 3), marks=pytest.mark.processes),
    ],
)
def test_each_branch_computes_its_rows_as_by_themselves(
    transport: str, components: int, shares: tuple[int, ...]
) -> None:
    """Exactly, and lagged too."""
    graph = toy_graph(DENOISER, shares[0])
    placed = contiguous(graph, components)
    plan = plan_of(graph, placed, branches=len(shares), branch_rows=shares, warmup=2, predictor="linear")
    trajectory = Trajectory(calls=CALLS, rows=4)
    expected = []
    for part, rows in zip(parts_of(trajectory, shares), shares, strict=True):
        own = toy_graph(DENOISER, rows)
        placement = contiguous(own, components)
        expected.append(reference(DENOISER, own, placement, part, warmup=2, predictor="linear"))
    with Engine(DENOISER, plan, EngineOptions(transport=transport)) as engine:
        got = trajectory.through(engine)
        again = trajectory.through(engine)
        assert all(report.steps >= 2 * CALLS - 1 for report in engine.stats.ranks)  # the last may not be counted yet
    assert equal(got, [torch.cat(each) for each in zip(*expected, strict=True)])
    assert equal(again, got)
    assert largest_difference(got[:2], trajectory.through(DENOISER)[:2]) < 1e-5


@pytest.mark.parametrize(("rows", "used"), [(8, 4), (4, 4), (6, 1), (1, 1)])
def test_rows_that_cannot_be_shared_out_go_to_one_branch(rows: int, used: int) -> None:
    plan = plan_of(toy_graph(DENOISER, 1), contiguous(toy_graph(DENOISER, 1), 1), branches=4)
    trajectory = Trajectory(calls=2, rows=rows)
    with Engine(DENOISER, plan, EngineOptions(transport="emulation")) as engine:
        got = trajectory.through(engine)
        assert sum(report.steps > 0 for report in engine.stats.ranks) == used
    assert largest_difference(got, trajectory.through(DENOISER)) < 1e-5


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_streams_and_rows_have_branches_at_once(transport: str) -> None:
    """Guidance in two calls of two images each: four branches."""
    plan = plan_of(
        toy_graph(DENOISER, 1), contiguous(toy_graph(DENOISER, 1), 1), branches=4, streams=2, calls_per_step=2
    )
    trajectories = [Trajectory(calls=CALLS), Trajectory(calls=CALLS)]
    trajectories[1].context = -trajectories[0].context
    expected = [
        torch.cat(each) for each in zip(*(p.through(DENOISER) for t in trajectories for p in t.halves(2)), strict=True)
    ]
    got = []
    with Engine(DENOISER, plan, EngineOptions(transport=transport)) as engine:
        for call in range(CALLS):
            got.append(torch.cat([engine(**trajectory.inputs(call))[0] for trajectory in trajectories]))
        stats = engine.stats
        assert all(report.steps >= CALLS - 1 for report in stats.ranks)
        assert stats.foreseen_calls == CALLS - 1
    assert equal(got, expected)
