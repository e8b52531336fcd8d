"""The predicted figures that a plan carries, from the chosen candidate."""

from __future__ import annotations

from collections.abc import Sequence

from partitioner.costs.node_costs import GraphCosts
from partitioner.fleet import Fleet
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from partitioner.plan.build_programs import build_programs
from partitioner.plan.preamble import build_preamble
from partitioner.plan.program import Program
from partitioner.plan.ranks import rank_of
from partitioner.plan.records import Predicted, PredictedComponent
from partitioner.planning.candidates import Candidate
from partitioner.planning.graph_buffers import graph_bytes
from partitioner.planning.message_memory import SLOTS, component_memory


def predicted_figures(
    graph: TracedGraph,
    chosen: Candidate,
    fleet: Fleet,
    sequential_ms: float,
    whole_costs: GraphCosts,
) -> Predicted:
    programs = build_programs(graph, chosen.placed, chosen.components)
    preamble = build_preamble(graph, chosen.placed, chosen.components)
    branching = chosen.branching
    components = []
    for branch in range(chosen.branches):
        evaluation = chosen.evaluations[branch % len(branching.rows)]
        calls = branching.calls_of(branch)
        held_by = component_memory(evaluation, calls)
        beside = [_slots_beside(graph, programs, chosen, branch, k) for k in range(chosen.components)]
        for k, (figures, program) in enumerate(zip(evaluation.components, programs, strict=True)):
            driver = rank_of(branch, k, chosen.components) == 0
            held = {*program.parameters, *(preamble.parameters if driver else ())}
            metas = [graph.parameter_by_name[name].meta for name in held]
            speed = fleet[chosen.device_of[rank_of(branch, k, chosen.components)]].speed or 1.0
            load_ms = figures.load_ms if driver else figures.work_ms  # on the slowest device that holds it
            slowest = _slowest_speed(chosen, fleet, branch, k)
            components.append(
                PredictedComponent(
                    compute_ms=_rounded(calls * load_ms * slowest / speed),
                    macs=figures.macs,
                    parameters=sum(meta.numel for meta in metas),
                    parameter_bytes=sum(meta.size_bytes for meta in metas),
                    memory_bytes=held_by[k].memory_bytes + beside[k],
                    receive_bytes=calls * figures.receive_bytes,
                    send_bytes=calls * figures.send_bytes,
                    message_bytes=held_by[k].message_bytes + beside[k],
                    slot_bytes=held_by[k].slot_bytes + beside[k],
                    graph_bytes=graph_bytes(graph, program),
                )
            )
    return Predicted(
        sequential_ms=_rounded(sequential_ms),
        step_ms=_rounded(chosen.step_ms),
        lower_bound_ms=_rounded(chosen.lower_bound_ms),
        gap=_rounded(chosen.compute_ms / chosen.lower_bound_ms - 1 if chosen.lower_bound_ms > 0 else 0.0),
        speedup_step=_rounded(sequential_ms / chosen.step_ms if chosen.step_ms > 0 else 1.0),
        exact_step_ms=_rounded(chosen.exact_step_ms),
        bytes_per_step=chosen.bytes_per_step,
        staleness=_rounded(chosen.evaluation.staleness),
        macs=sum(cost.macs for cost in whole_costs.nodes.values()),
        components=tuple(components),
    )


def _slots_beside(
    graph: TracedGraph, programs: Sequence[Program], chosen: Candidate, branch: int, component: int
) -> int:
    """Bytes of a rank's slots for what is no boundary tensor: the driver sends inputs, other branches their results."""
    if component != chosen.components - 1:
        return 0
    nodes = graph.node_by_name
    if branch > 0:
        results = [nodes[name].meta.size_bytes for name in programs[component].results]
        return chosen.branching.calls_of(branch) * SLOTS * sum(results)
    total = 0
    for other in range(chosen.branches):
        for program in programs if other else programs[:-1]:
            for name in program.inputs:
                item = graph.input_by_name.get(name) or nodes[name]
                slots = SLOTS if item.role > Role.PROMPT else 1  # a prompt's is sent once in a trajectory
                total += chosen.branching.calls_of(other) * slots * item.meta.size_bytes
    return total


def _slowest_speed(chosen: Candidate, fleet: Fleet, branch: int, component: int) -> float:
    """Of the devices that compute the same as one component of a branch, each for a branch of its own."""
    shares = len(chosen.branching.rows)
    same = range(chosen.branches) if chosen.branching.is_even else range(branch % shares, chosen.branches, shares)
    return min(fleet[chosen.device_of[rank_of(b, component, chosen.components)]].speed or 1.0 for b in same)


def _rounded(value: float) -> float:
    """Six decimals: a plan's bytes do not depend on the last bits of a sum."""
    return round(float(value), 6) + 0.0  # -0.0 becomes 0.0
