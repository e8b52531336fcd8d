"""Costs, plans and simulated times of the engine in the benchmark."""

from __future__ import annotations

from functools import partial

from partitioner.costs.components import time_components
from partitioner.costs.lookup import apply_profile, load_profile
from partitioner.costs.measure import measure
from partitioner.costs.model import GivenCosts
from partitioner.costs.node_costs import GraphCosts
from partitioner.graph.ir import TracedGraph
from partitioner.plan.plan import Plan
from partitioner.plan.schedule import Schedule
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromGraphs
from partitioner.search.mode import Mode
from partitioner.simulator.machine import Link, Machine
from partitioner.simulator.simulate import simulate
from profiles.device_sheets import device_spec
from tools.bench.settings import RANKS, BenchSettings


def measure_costs(graph: TracedGraph, settings: BenchSettings) -> GraphCosts:
    """Costs of the nodes on one CPU thread: measured, or looked up in the settings' profile."""
    profile = measure(graph, "cpu") if settings.profile is None else load_profile(settings.profile)
    return apply_profile(profile, graph)


def make_plan(
    graph: TracedGraph, costs: GraphCosts, settings: BenchSettings, mode: Mode, period: int = 1
) -> tuple[Plan, float]:
    """A plan for two ranks of one CPU thread each, and the simulated mean time of a call in ms, warm-up included.

    Node costs are refined by timing whole components.
    """
    options = PlanOptions(
        branches=1,
        mode=mode,
        warmup=settings.warmup,
        predictor=settings.predictor,
        period=period,
        refine=True,
        force=True,
    )
    timer, cpu = partial(time_components, device="cpu"), device_spec("cpu")
    model = GivenCosts(lambda _: costs, "cpu", driver_ms=cpu.driver_ms, timer=timer)
    planning = plan(PlanRequest(FromGraphs(graph), RANKS, model, options))
    made, placed, link = planning.plan, planning.chosen.placed, cpu.link()
    # without the driver's own work: the benchmark calls the denoiser, and takes no step of a sampler in between
    simulation = simulate(
        graph,
        placed,
        {name: cost.ms for name, cost in costs.nodes.items()},
        Machine.uniform(RANKS, Link(link.latency_ms, link.gb_per_s)),
        Schedule(made.components, made.mode, made.warmup, made.periods),
        calls=settings.steps,
        component_ms=timer(graph, placed, RANKS),
    )
    return made, simulation.trajectory_ms / settings.steps
