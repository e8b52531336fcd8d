"""Costs, plans and simulated times of the engine in the benchmark."""

from __future__ import annotations

from functools import partial

from partitioner.costs.components import time_components
from partitioner.costs.lookup import apply_profile, load_profile
from partitioner.costs.measure import measure
from partitioner.costs.node_costs import GraphCosts
from partitioner.fleet import parse_fleet
from partitioner.graph.ir import TracedGraph
from partitioner.plan.plan import Plan
from partitioner.plan.schedule import Schedule
from partitioner.planning.options import Options
from partitioner.planning.planner import plan_graphs
from partitioner.search.mode import Mode
from partitioner.simulator.machine import Link, Machine
from partitioner.simulator.simulate import simulate
from profiles.device_sheets import device_spec
from tools.bench.settings import RANKS, Settings


def measure_costs(graph: TracedGraph, settings: Settings) -> GraphCosts:
    """Of the nodes, on one CPU thread; measured, or a profile's."""
    profile = measure(graph, "cpu") if settings.profile is None else load_profile(settings.profile)
    return apply_profile(profile, graph)


def make_plan(
    graph: TracedGraph, costs: GraphCosts, settings: Settings, mode: Mode, period: int = 1
) -> tuple[Plan, float]:
    """A plan for two CPU threads, and the mean time of a call in ms that partitioner.simulator.simulate predicts.

    Node costs are refined with whole components.
    """
    options = Options(
        branches=1, mode=mode, warmup=settings.warmup, predictor=settings.predictor, period=period, force=True
    )
    timer = partial(time_components, device="cpu")
    planning = plan_graphs(graph, None, parse_fleet(str(RANKS), "cpu"), lambda _: costs, options, timer=timer)
    plan, placed, link = planning.plan, planning.chosen.placed, device_spec("cpu").link()
    simulation = simulate(
        graph,
        placed,
        {name: cost.ms for name, cost in costs.nodes.items()},
        Machine.uniform(RANKS, Link(link.latency_us * 1e-3, link.duplex_gb_per_s / 2 * link.efficiency)),
        Schedule(plan.components, plan.mode, plan.warmup, plan.periods),
        calls=settings.steps,
        component_ms=timer(graph, placed, RANKS),
    )
    return plan, simulation.trajectory_ms / settings.steps
