"""What each rank does in a trajectory: scripts for the simulated machine, from programs and schedule.

Rank 0 is the driver and has the last component; at each call, with two components:

    rank 0 (driver, component 1)            rank 1 (component 0)
    -------------------------------------   -----------------------------------
    1  Work    the preamble
    2  Emit    the call's inputs            2  Await   its inputs
                                            3  Work    its nodes
                                            4  Emit    its boundary tensors
    3  Await   boundary tensors, by the
               schedule this call's or
               an earlier one's
    4  Work    its nodes
    5  HostWork the pipeline's scheduler
    6  EndCall
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from partitioner.plan.build_programs import build_programs
from partitioner.plan.placement import NamePlacement
from partitioner.plan.preamble import Preamble, build_preamble
from partitioner.plan.program import Compute, Program, Receive, Send
from partitioner.plan.ranks import rank_of
from partitioner.plan.schedule import ComponentRun, Schedule
from partitioner.simulator.actions import Action, Await, Emit, EndCall, HostWork, Work, work
from partitioner.simulator.machine import Machine


def write_scripts(
    graph: TracedGraph,
    placement: NamePlacement,
    costs_ms: Mapping[str, float],
    machine: Machine,
    schedule: Schedule,
    *,
    calls: int,
    branches: int = 1,
) -> list[list[Action]]:
    """What each rank does in ``calls`` denoiser calls; arguments as for ``simulate``."""
    return _Scripts(graph, placement, costs_ms, machine, schedule, branches).all(calls)


class _Scripts:
    """Turns programs and schedule into what each rank does."""

    def __init__(
        self,
        graph: TracedGraph,
        placement: NamePlacement,
        costs_ms: Mapping[str, float],
        machine: Machine,
        schedule: Schedule,
        branches: int,
    ) -> None:
        components = schedule.components
        if machine.ranks != components * branches:
            raise ValueError(f"{branches} x {components} ranks need as many devices; the machine has {machine.ranks}")
        self.graph = graph
        self.programs = build_programs(graph, placement, components)
        self.preamble = build_preamble(graph, placement, components)
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

    def _send_inputs(self, runs: Sequence[ComponentRun], branch: int, start: bool) -> None:
        if start:
            self._work(0, "preamble, prompt", self.preamble.hoisted.prompt)
        for call in dict.fromkeys(run.call for run in runs):
            self._work(0, f"preamble of call {call}", self.preamble.hoisted.timestep)
            for run in runs:
                rank = rank_of(branch, run.component, self.schedule.components)
                if run.call == call and rank != 0:
                    size = _input_bytes(self.graph, self.preamble, self.programs[run.component], start)
                    self.scripts[0].append(Emit(("inputs", rank, call), f"inputs of call {call}", size, (rank,)))

    def _evaluate(self, run: ComponentRun, branch: int) -> None:
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

    def _send(self, rank: int, branch: int, run: ComponentRun, step: Send) -> None:
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
