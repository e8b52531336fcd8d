"""simulate: a whole trajectory of a plan on a simulated machine: step time, waits, a timeline. Pure.

What runtime's driver and workers do, in their order: the driver sends each call's inputs, every rank runs its program
on them by the schedule, sends overlap with compute, the driver joins the branches' results and does the pipeline's own
work before the next call. What a predictor computes is left out: it is a few element-wise operations per boundary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from partitioner.ir import Role, TracedGraph
from partitioner.machine import FREE, Action, Await, Emit, EndCall, HostWork, Machine, Work, play, work
from partitioner.plan import rank_of
from partitioner.program import Compute, Preamble, Program, Receive, Send, build_preamble, build_programs
from partitioner.schedule import Run, Schedule
from partitioner.timeline import COMMUNICATION, COMPUTE, DRIVER, IDLE, Timeline


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
    placed: Mapping[str, int],
    costs_ms: Mapping[str, float],
    machine: Machine,
    schedule: Schedule,
    *,
    calls: int,
    branches: int = 1,
    component_ms: Sequence[float] | None = None,
) -> Simulation:
    """Play a placement (latent node name -> component) over ``calls`` denoiser calls.

    graph: what one branch computes. costs_ms: of every node, on a device of speed 1. component_ms: what the latent
    nodes of each component took when they were measured together; their costs are then scaled to it.
    Raises PlanError as build_programs does.
    """
    if component_ms is not None:
        costs_ms = scaled_to_components(costs_ms, placed, component_ms)
    scripts = write_scripts(graph, placed, costs_ms, machine, schedule, calls=calls, branches=branches)
    return summarise(play(machine, scripts), schedule.warmup, *_steady_window(schedule, calls))


def write_scripts(
    graph: TracedGraph,
    placed: Mapping[str, int],
    costs_ms: Mapping[str, float],
    machine: Machine,
    schedule: Schedule,
    *,
    calls: int,
    branches: int = 1,
) -> list[list[Action]]:
    """What each rank does in ``calls`` denoiser calls; arguments as for ``simulate``."""
    return _Scripts(graph, placed, costs_ms, machine, schedule, branches).all(calls)


def scaled_to_components(
    costs_ms: Mapping[str, float], placed: Mapping[str, int], component_ms: Sequence[float]
) -> dict[str, float]:
    """Node costs whose sum over each component's latent nodes is what was measured of it."""
    sums = [0.0] * len(component_ms)
    for name, k in placed.items():
        sums[k] += costs_ms[name]
    factors = [measured / total if total > 0 else 1.0 for measured, total in zip(component_ms, sums, strict=True)]
    return {**costs_ms, **{name: costs_ms[name] * factors[k] for name, k in placed.items()}}


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


class _Scripts:
    """Turns programs and schedule into what each rank does."""

    def __init__(
        self,
        graph: TracedGraph,
        placed: Mapping[str, int],
        costs_ms: Mapping[str, float],
        machine: Machine,
        schedule: Schedule,
        branches: int,
    ) -> None:
        components = schedule.components
        if machine.ranks != components * branches:
            raise ValueError(f"{branches} x {components} ranks need as many devices; the machine has {machine.ranks}")
        self.graph = graph
        self.programs = build_programs(graph, placed, components)
        self.preamble = build_preamble(graph, placed, components)
        self.costs_ms = costs_ms
        self.machine = machine
        self.schedule = schedule
        self.branches = branches
        self.made_prompts: set[int] = set()  # ranks that have computed what depends on the prompt
        self.works: dict[tuple[float, tuple[str, ...]], Work] = {}
        self.scripts: list[list[Action]] = [[] for _ in range(machine.ranks)]

    def all(self, calls: int) -> list[list[Action]]:
        schedule = replace(self.schedule, calls=calls)
        for call in range(calls):
            runs = schedule.runs(call)
            for branch in range(self.branches):
                self._send_inputs(runs, branch, call == 0)
            for run in runs:
                for branch in range(self.branches):
                    self._evaluate(run, branch)
            self.scripts[0] += [Await(("result", branch, call)) for branch in range(1, self.branches)]
            self.scripts[0] += [HostWork("scheduler", self.machine.driver_ms), EndCall(call)]
        return self.scripts

    def _send_inputs(self, runs: Sequence[Run], branch: int, start: bool) -> None:
        if start:
            self._work(0, "preamble, prompt", self.preamble.hoisted.prompt)
        for call in dict.fromkeys(run.call for run in runs):
            self._work(0, f"preamble of call {call}", self.preamble.hoisted.timestep)
            for run in runs:
                rank = rank_of(branch, run.component, self.schedule.components)
                if run.call == call and rank != 0:
                    size = _input_bytes(self.graph, self.preamble, self.programs[run.component], start)
                    self.scripts[0].append(Emit(("inputs", rank, call), f"inputs of call {call}", size, (rank,)))

    def _evaluate(self, run: Run, branch: int) -> None:
        program = self.programs[run.component]
        components = self.schedule.components
        rank = rank_of(branch, run.component, components)
        script = self.scripts[rank]
        if rank != 0:
            script.append(Await(("inputs", rank, run.call)))
        if rank not in self.made_prompts:
            self.made_prompts.add(rank)
            self._work(rank, "prompt", program.hoisted.prompt)
        self._work(rank, f"timestep of call {run.call}", program.hoisted.timestep)
        for step in program.instructions:
            if isinstance(step, Receive):
                script.append(Await((branch, step.value, run.reads[step.source])))
            elif isinstance(step, Compute):
                self._work(rank, f"call {run.call}: {self._where(step)}", step.nodes)
            else:
                self._send(rank, branch, run, step)
        if branch and run.component == components - 1:
            size = sum(self.graph.node_by_name[name].meta.size_bytes for name in program.results)
            script.append(Emit(("result", branch, run.call), f"result of call {run.call}", size, (0,)))

    def _send(self, rank: int, branch: int, run: Run, step: Send) -> None:
        size = self.graph.node_by_name[step.value].meta.size_bytes
        readers = tuple(rank_of(branch, reader, self.schedule.components) for reader in step.readers)
        self.scripts[rank].append(Emit((branch, step.value, run.call), f"%{step.value} of {run.call}", size, readers))

    def _work(self, rank: int, name: str, nodes: tuple[str, ...]) -> None:
        if not nodes:
            return
        speed = self.machine.speeds[rank]
        if (speed, nodes) not in self.works:
            times = [self.costs_ms[node] / speed for node in nodes]
            self.works[speed, nodes] = work(name, times, self.machine.launch_ms)
        self.scripts[rank].append(replace(self.works[speed, nodes], name=name))

    def _where(self, step: Compute) -> str:
        """The modules of a run of nodes, for people."""
        first, last = (self.graph.node_by_name[name].module for name in (step.nodes[0], step.nodes[-1]))
        return (first if first == last else f"{first} .. {last}") or "outside of modules"


def _input_bytes(graph: TracedGraph, preamble: Preamble, program: Program, start: bool) -> int:
    """Bytes that the driver sends a rank for one evaluation; at the start also what depends on the prompt."""
    made = {name: graph.node_by_name[name] for name in preamble.values}
    total = 0
    for name in program.inputs:
        value = made.get(name) or graph.input_by_name[name]
        if value.role > Role.PROMPT or start:
            total += value.meta.size_bytes
    return total


@dataclass(frozen=True, slots=True)
class SpeedOfLight:
    """Where the time goes: speed-ups over one device, each after one more loss.

    ideal: as if the work were split perfectly; balanced: a steady step with free communication; connected: with it;
    remaining: the whole trajectory, warm-up and all.
    """

    ideal: float
    balanced: float
    connected: float
    remaining: float
    calls: int

    def __str__(self) -> str:
        return (
            f"ideal {self.ideal:.2f} x, balance leaves {self.balanced:.2f} x, communication {self.connected:.2f} x, "
            f"warm-up {self.remaining:.2f} x over {self.calls} steps"
        )


def without_communication(machine: Machine) -> Machine:
    """The same machine with wires that take no time."""
    return replace(machine, wires=dict.fromkeys(machine.wires, FREE))


def speed_of_light(played: Simulation, unhindered: Simulation, machine: Machine, sequential_ms: float) -> SpeedOfLight:
    """Where the time goes in ``played``. unhindered: the same, played without communication; sequential_ms: one whole
    call on the fastest device, without the driver's work."""
    call_ms = sequential_ms + machine.driver_ms
    return SpeedOfLight(
        ideal=sum(machine.speeds) / max(machine.speeds),
        balanced=call_ms / unhindered.step_ms,
        connected=call_ms / played.step_ms,
        remaining=call_ms * played.calls / played.trajectory_ms,
        calls=played.calls,
    )
