"""simulate: a whole trajectory of a plan on a simulated machine: step time, waits, a timeline. Pure.

It plays what runtime's driver and workers do, in their order: the driver sends each call's inputs, every rank runs its
program on them by the schedule, sends overlap with compute, the driver joins the branches' results and does the
pipeline's own work before the next call. What a predictor computes is left out: it is a few element-wise operations per
boundary tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from partitioner.graph.ir import TracedGraph
from partitioner.plan.placement import NamePlacement
from partitioner.plan.schedule import Schedule
from partitioner.plan.timeline import COMMUNICATION, COMPUTE, DRIVER, IDLE, Timeline
from partitioner.simulator.machine import Machine
from partitioner.simulator.play import play
from partitioner.simulator.scripts import write_scripts


@dataclass(frozen=True, slots=True)
class RankTimes:
    """How a rank spends one call in the steady state, in ms.

    communication_ms: waits for what is under way to it (exposed communication); idle_ms: all other waits.
    """

    compute_ms: float
    driver_ms: float
    communication_ms: float
    idle_ms: float


@dataclass(frozen=True)
class Simulation:
    """Simulated figures of one trajectory, times in ms.

    step_ms: of a call in the steady state; exact_step_ms: mean of the warm-up calls. ranks: in the steady state.
    """

    calls: int
    step_ms: float
    exact_step_ms: float
    trajectory_ms: float
    ranks: tuple[RankTimes, ...]
    timeline: Timeline

    @property
    def communication_share(self) -> float:
        """Exposed communication of the rank that has most of it, as a share of a step."""
        return max(rank.communication_ms for rank in self.ranks) / self.step_ms if self.step_ms > 0 else 0.0


def simulate(
    graph: TracedGraph,
    placement: NamePlacement,
    costs_ms: Mapping[str, float],
    machine: Machine,
    schedule: Schedule,
    *,
    calls: int,
    branches: int = 1,
    component_ms: Sequence[float] | None = None,
) -> Simulation:
    """Play a placement over ``calls`` denoiser calls.

    graph: what one branch computes. costs_ms: of every node, on a device of speed 1. component_ms: what the latent
    nodes of each component took when they were measured together; their costs are then scaled to it.
    Raises PlanError as build_programs does.
    """
    if component_ms is not None:
        costs_ms = scaled_to_components(costs_ms, placement, component_ms)
    scripts = write_scripts(graph, placement, costs_ms, machine, schedule, calls=calls, branches=branches)
    return summarise(play(machine, scripts), schedule.warmup, *_steady_window(schedule, calls))


def scaled_to_components(
    costs_ms: Mapping[str, float], placement: NamePlacement, component_ms: Sequence[float]
) -> dict[str, float]:
    """Node costs whose sum over each component's latent nodes is what was measured of it."""
    sums = [0.0] * len(component_ms)
    for name, k in placement.items():
        sums[k] += costs_ms[name]
    factors = [measured / total if total > 0 else 1.0 for measured, total in zip(component_ms, sums, strict=True)]
    return {**costs_ms, **{name: costs_ms[name] * factors[k] for name, k in placement.items()}}


def summarise(timeline: Timeline, warmup: int, first: int, last: int) -> Simulation:
    """Figures of a timeline; the calls from ``first`` up to but without ``last`` are its steady state."""
    starts = (0.0, *timeline.ends_ms)
    start, end = starts[first], starts[last]
    count = last - first

    spent = timeline.times_between(start, end)
    exact = min(warmup, len(timeline.ends_ms))
    return Simulation(
        calls=len(timeline.ends_ms),
        step_ms=(end - start) / count,
        exact_step_ms=starts[exact] / exact,
        trajectory_ms=starts[-1],
        ranks=tuple(
            RankTimes(
                compute_ms=spent[rank, COMPUTE] / count,
                driver_ms=spent[rank, DRIVER] / count,
                communication_ms=spent[rank, COMMUNICATION] / count,
                idle_ms=spent[rank, IDLE] / count,
            )
            for rank in range(timeline.ranks)
        ),
        timeline=timeline,
    )


def _steady_window(schedule: Schedule, calls: int) -> tuple[int, int]:
    """Calls of which the mean is the steady state: the later half, before a look-ahead pipe empties.

    An even number of periods: where a round trip of two calls is what decides, calls of two lengths alternate.
    """
    first = 0 if schedule.mode == "exact" else min(schedule.warmup, calls - 1)
    last = calls - (schedule.components - 1) if schedule.mode == "lookahead" else calls
    last = max(last, first + 1)
    period = 2 * math.lcm(*schedule.periods)
    length = max((last - first) // 2 // period * period, min(period, last - first))
    return last - length, last
