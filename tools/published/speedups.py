"""AsyncDiff's published speed-ups beside simulated ones, and what this project's plans reach on the same machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import mean
from typing import Any

from partitioner.baselines.asyncdiff_simulation import simulate_asyncdiff
from partitioner.baselines.asyncdiff_split import published_split
from partitioner.costs.model import GivenCosts
from partitioner.fleet import Device
from partitioner.plan.schedule import Schedule
from partitioner.planning.candidates import Candidate
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import Planning, plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromGraphs
from partitioner.simulator.simulate import Simulation, simulate
from partitioner.simulator.speed_of_light import speed_of_light, without_communication
from profiles.device_sheets import device_spec
from tools.published.fit import FittedModel, fit_model
from tools.published.machine import link_of, machine_of

COUNTS = (2, 3, 4, 8)
LINKS = ("nvlink", "pcie")


def simulate_configuration(fitted: FittedModel, config: str, link: str = "nvlink") -> Simulation:
    """Simulate AsyncDiff's code in a configuration of the paper.

    Args:
        fitted: the model.
        config: as the paper writes it; "N3S2" is three components with stride 2.
        link: "nvlink" or "pcie".
    """
    components, stride = int(config[1]), int(config[3])
    modules = published_split(fitted.model, components)
    assert modules is not None
    machine = machine_of(fitted.spec, components + stride - 1, link)
    warmup = int(fitted.record["warmup"])
    return simulate_asyncdiff(
        fitted.whole, modules, fitted.costs_ms, machine, calls=fitted.steps, stride=stride, warmup=warmup
    )


def published_rows(fitted: FittedModel) -> Iterator[dict[str, Any]]:
    """For each configuration of the paper its figures and the simulated ones; error: relative, of the speed-up."""
    for config, figures in fitted.record["configs"].items():
        played = simulate_configuration(fitted, config)
        latency_ms = fitted.latency_ms(played)
        speedup = fitted.sequential_ms / latency_ms
        ring_ms = sum(s.end_ms - s.start_ms for s in played.timeline.spans if s.kind == "communication" and s.rank == 0)
        yield {
            "model": fitted.model,
            "config": config,
            "table": fitted.record["table"],
            "published_speedup": figures["speedup"],
            "simulated_speedup": speedup,
            "error": speedup / figures["speedup"] - 1,
            "published_latency_s": figures["latency_s"],
            "simulated_latency_s": latency_ms / 1e3,
            "simulated_communication_percent": 100 * ring_ms / latency_ms,
        }


def our_rows(fitted: FittedModel, counts: Sequence[int] = COUNTS) -> Iterator[dict[str, Any]]:
    """What the planner's plans reach on the same machine, with each number of devices, set of options and link.

    The first set of options is none: the planner recommends a mode and a warm-up. The second is async mode with one
    warm-up step, as in the paper's tables.
    """
    for count in counts:
        recommended = plan_on_paper_machine(fitted, count)
        asked = [("recommended", recommended, recommended.plan.warmup)]
        if recommended.chosen.components > 1:
            in_async = plan_on_paper_machine(fitted, count, mode="async", branches=recommended.chosen.branches)
            asked.append(("--mode async --warmup 1", in_async, 1))
        for options, planning, warmup in asked:
            for link in LINKS:
                yield {"model": fitted.model, "devices": count, "link": link, "asked": options} | _simulated(
                    fitted, planning.chosen, warmup, link
                )


def plan_on_paper_machine(fitted: FittedModel, count: int, **options: Any) -> Planning:
    """The planner's plan for so many of the model's GPUs.

    A fleet has one link per device, so the planner counts on PCIe: bridges do not reach every other GPU.
    """
    wire = link_of(fitted.spec, "pcie")
    device = Device(fitted.costs.device, fitted.spec.memory_bytes, wire.gb_per_s, wire.latency_ms)
    costs = {id(fitted.whole): fitted.costs, id(fitted.half): fitted.half_costs}
    model = GivenCosts(lambda graph: costs[id(graph)], fitted.costs.device, driver_ms=fitted.spec.driver_ms)
    source = FromGraphs(fitted.whole, (fitted.half,))
    return plan(PlanRequest(source, (device,) * count, model, PlanOptions(**options)))


def _simulated(fitted: FittedModel, chosen: Candidate, warmup: int, link: str) -> dict[str, Any]:
    """Simulated figures of a plan."""
    graph, costs_ms = (fitted.half, fitted.half_costs_ms) if chosen.branches == 2 else (fitted.whole, fitted.costs_ms)
    machine = machine_of(fitted.spec, chosen.ranks, link)
    schedule = Schedule(chosen.components, chosen.mode, warmup, chosen.periods)
    play = partial(
        simulate, graph, chosen.placed, costs_ms, schedule=schedule, calls=fitted.steps, branches=chosen.branches
    )
    played, unhindered = play(machine=machine), play(machine=without_communication(machine))
    light = speed_of_light(played, unhindered, machine, sum(fitted.costs_ms.values()))
    return {
        "plan": f"{chosen.branches} x {chosen.components} x {chosen.period}",
        "mode": chosen.mode if chosen.components > 1 else "exact",
        "warmup": warmup,
        "step_ms": played.step_ms,
        "communication_percent": 100 * played.communication_share,
        "simulated_speedup": fitted.sequential_ms / fitted.latency_ms(played),
        "speed_of_light": asdict(light),
        "denoiser_speedup": (fitted.sequential_ms - fitted.outside_ms) / played.trajectory_ms,
    }


def compare(models: Sequence[str], published: Mapping[str, Any], counts: Sequence[int] = COUNTS) -> dict[str, Any]:
    """Everything that is printed, as ``--json`` prints it."""
    rows: list[dict[str, Any]] = []
    videos: list[dict[str, Any]] = []
    ours: list[dict[str, Any]] = []
    fits = {}
    for model in models:
        print(f"tracing and simulating {model}", file=sys.stderr)
        fitted = fit_model(model, published)
        fits[model] = {
            "efficiency": fitted.efficiency,
            "outside_s": fitted.outside_ms / 1e3,
            "warmup": fitted.record["warmup"],
        }
        (rows if fitted.record["table"] == 1 else videos).extend(published_rows(fitted))
        ours += our_rows(fitted, counts)
    errors = [abs(row["error"]) for row in rows]
    shares = published["communication_share_percent"]
    return {
        "source": published["source"],
        "machine": f"{device_spec(published['device']).title}, simulated; {published['steps']} steps",
        "fitted": fits,
        "rows": rows,
        "videos": videos,
        "mean_absolute_error": mean(errors) if errors else None,
        "largest_error": max(errors) if errors else None,
        "communication": [
            {
                "config": row["config"],
                "published_percent": shares["configs"][row["config"]],
                "simulated_percent": row["simulated_communication_percent"],
            }
            for row in rows
            if row["model"] == shares["model"]
        ],
        "ours": ours,
    }
