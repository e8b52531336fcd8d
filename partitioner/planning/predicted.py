"""The predicted figures that a plan carries, from the chosen candidate."""

from __future__ import annotations

from partitioner.costs.node_costs import GraphCosts
from partitioner.fleet import Fleet
from partitioner.graph.ir import TracedGraph
from partitioner.plan.build_programs import build_programs
from partitioner.plan.preamble import build_preamble
from partitioner.plan.ranks import rank_of
from partitioner.plan.records import Predicted, PredictedComponent
from partitioner.planning.candidates import Candidate


def predicted_figures(
    graph: TracedGraph,
    chosen: Candidate,
    fleet: Fleet,
    sequential_ms: float,
    whole_costs: GraphCosts,
) -> Predicted:
    programs = build_programs(graph, chosen.placed, chosen.components)
    preamble = build_preamble(graph, chosen.placed, chosen.components)
    slowest_of_pair = [
        min(fleet[chosen.device_of[rank_of(b, k, chosen.components)]].speed or 1.0 for b in range(chosen.branches))
        for k in range(chosen.components)
    ]
    components = []
    for branch in range(chosen.branches):
        for k, (figures, program) in enumerate(zip(chosen.evaluation.components, programs, strict=True)):
            driver = rank_of(branch, k, chosen.components) == 0
            held = {*program.parameters, *(preamble.parameters if driver else ())}
            metas = [graph.parameter_by_name[name].meta for name in held]
            speed = fleet[chosen.device_of[rank_of(branch, k, chosen.components)]].speed or 1.0
            load_ms = figures.load_ms if driver else figures.work_ms  # on the slowest device of its pair
            components.append(
                PredictedComponent(
                    compute_ms=_rounded(load_ms * slowest_of_pair[k] / speed),
                    macs=figures.macs,
                    parameters=sum(meta.numel for meta in metas),
                    parameter_bytes=sum(meta.size_bytes for meta in metas),
                    memory_bytes=figures.memory_bytes,
                    receive_bytes=figures.receive_bytes,
                    send_bytes=figures.send_bytes,
                )
            )
    return Predicted(
        sequential_ms=_rounded(sequential_ms),
        step_ms=_rounded(chosen.step_ms),
        lower_bound_ms=_rounded(chosen.lower_bound_ms),
        gap=_rounded(chosen.compute_ms / chosen.lower_bound_ms - 1 if chosen.lower_bound_ms > 0 else 0.0),
        speedup_step=_rounded(sequential_ms / chosen.step_ms if chosen.step_ms > 0 else 1.0),
        exact_step_ms=_rounded(chosen.evaluation.sequential_ms),
        bytes_per_step=chosen.branches * chosen.evaluation.bytes_per_step,
        staleness=_rounded(chosen.evaluation.staleness),
        macs=sum(cost.macs for cost in whole_costs.nodes.values()),
        components=tuple(components),
    )


def _rounded(value: float) -> float:
    """Six decimals: a plan's bytes do not depend on the last bits of a sum."""
    return round(float(value), 6) + 0.0  # -0.0 becomes 0.0
