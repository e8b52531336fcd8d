"""Trajectory: where one starts, and what it has the components run."""

from __future__ import annotations

import re

import diffusers
import torch

from runtime.driver import trajectory as module
from runtime.driver.trajectory import RunMode, Trajectory
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support import engines
from tests.support.engines import equal
from tests.support.toy_plans import DENOISER, GRAPHS, KINDS


class Scheduler:
    """As diffusers' are seen: set_timesteps makes a new tensor."""

    timesteps: torch.Tensor

    def set_timesteps(self, count: int) -> None:
        self.timesteps = torch.arange(count)


def test_a_scheduler_tells_where_a_trajectory_starts() -> None:
    """Also where the timesteps fall on, and where one repeats, as in two-call samplers."""
    kind, scheduler = KINDS["folded"], Scheduler()
    options = EngineOptions(transport="emulation")
    with Engine(DENOISER, kind.plan, options, scheduler=lambda: scheduler) as engine:
        for start in (900.0, 600.0, 300.0):
            trajectory = engines.Trajectory()
            trajectory.timesteps = [torch.tensor(start - down) for down in (0, 20, 20, 40, 40, 60, 60)]
            scheduler.set_timesteps(7)
            assert equal(trajectory.through(engine), kind.alone(trajectory))


def test_a_scheduler_may_be_exchanged() -> None:
    kind, schedulers = KINDS["folded"], [Scheduler(), Scheduler()]
    for scheduler in schedulers:
        scheduler.set_timesteps(7)
    trajectory = engines.Trajectory()
    expected = kind.alone(trajectory)
    with Engine(DENOISER, kind.plan, EngineOptions(transport="emulation"), scheduler=lambda: schedulers[0]) as engine:
        assert equal(trajectory.through(engine), expected)
        schedulers.reverse()
        assert equal(trajectory.through(engine), expected)


def test_lookahead_runs_what_the_docstring_draws() -> None:
    """And a component reads messages of its own call only."""
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(7)
    running = Trajectory(0, RunMode(components=3, mode="lookahead", warmup=1, periods=(1, 1, 1)))
    graph, context = GRAPHS[2](), torch.zeros(2, 6)
    grid: list[list[str]] = [[], [], []]
    for call, timestep in enumerate(scheduler.timesteps):
        tensors = {"x": torch.full((2, 5, engines.WIDTH), float(call)), "t": timestep, "context": context}
        running.advance(graph, 1, tensors, scheduler)
        assert running.mode_now == ("exact" if call < 3 else "lookahead")
        runs = running.runs()
        for component, row in enumerate(grid):
            row.append(",".join(str(run.call) for run in runs if run.component == component) or ".")
        assert all(set(run.reads) == {run.call} for run in runs)
        running.done(runs)
    drawn = re.findall(r"^    component \d {4,}(.*)$", str(module.__doc__), re.MULTILINE)
    assert grid == [row.split() for row in drawn]
