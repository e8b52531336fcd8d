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


def play_asyncdiff(case: FittedModel, config: str, link: str = "nvlink") -> Simulation:
    """A configuration of the paper: "N3S2" is three components with stride 2."""
    components, stride = int(config[1]), int(config[3])
    modules = published_split(case.model, components)
    assert modules is not None
    machine = machine_of(case.spec, components + stride - 1, link)
    warmup = int(case.record["warmup"])
    return simulate_asyncdiff(
        case.whole, modules, case.costs_ms, machine, calls=case.steps, stride=stride, warmup=warmup
    )


def published_rows(case: FittedModel) -> Iterator[dict[str, Any]]:
    """Their figures beside the simulated ones; error: of the speed-up, relative."""
    for config, figures in case.record["configs"].items():
        played = play_asyncdiff(case, config)
        latency_ms = case.latency_ms(played)
        speedup = case.sequential_ms / latency_ms
        ring_ms = sum(s.end_ms - s.start_ms for s in played.timeline.spans if s.kind == "communication" and s.rank == 0)
        yield {
            "model": case.model,
            "config": config,
            "table": case.record["table"],
            "published_speedup": figures["speedup"],
            "simulated_speedup": speedup,
            "error": speedup / figures["speedup"] - 1,
            "published_latency_s": figures["latency_s"],
            "simulated_latency_s": latency_ms / 1e3,
            "simulated_communication_percent": 100 * ring_ms / latency_ms,
        }


def our_rows(case: FittedModel, counts: Sequence[int] = COUNTS) -> Iterator[dict[str, Any]]:
    """What the planner's plans reach on the same machine, for each number of devices, way of asking and link.

    Unasked it recommends a mode and a warm-up. The others are that mode with the least warm-up that it allows (an exact
    step per component before the first prediction), and async with 1, as in the paper's tables.
    """
    for count in counts:
        recommended = plan_case(case, count)
        branches, components = recommended.chosen.branches, recommended.chosen.components
        asked = [("recommended", recommended, recommended.plan.warmup)]
        if components < recommended.plan.warmup and recommended.chosen.mode == "lookahead" and components > 1:
            asked.append((f"--warmup {components}", recommended, components))
        if components > 1:
            in_async = plan_case(case, count, mode="async", branches=branches)
            asked.append(("--mode async --warmup 1", in_async, 1))
        for way, planning, warmup in asked:
            for link in LINKS:
                yield {"model": case.model, "devices": count, "link": link, "asked": way} | _played(
                    case, planning.chosen, warmup, link
                )


def plan_case(case: FittedModel, count: int, **options: Any) -> Planning:
    """The planner's plan for so many of the case's GPUs. It knows one link per device: PCIe, since bridges do not reach
    everyone."""
    wire = link_of(case.spec, "pcie")
    device = Device(case.costs.device, case.spec.memory_bytes, wire.gb_per_s, wire.latency_ms)
    costs = {id(case.whole): case.costs, id(case.half): case.half_costs}
    model = GivenCosts(lambda graph: costs[id(graph)], case.costs.device, driver_ms=case.spec.driver_ms)
    source = FromGraphs(case.whole, case.half)
    return plan(PlanRequest(source, (device,) * count, model, PlanOptions(**options)))


def _played(case: FittedModel, chosen: Candidate, warmup: int, link: str) -> dict[str, Any]:
    """Figures of a plan that the simulator plays."""
    graph, costs_ms = (case.half, case.half_costs_ms) if chosen.branches == 2 else (case.whole, case.costs_ms)
    machine = machine_of(case.spec, chosen.ranks, link)
    schedule = Schedule(chosen.components, chosen.mode, warmup, chosen.periods)
    play = partial(
        simulate, graph, chosen.placed, costs_ms, schedule=schedule, calls=case.steps, branches=chosen.branches
    )
    played, unhindered = play(machine=machine), play(machine=without_communication(machine))
    light = speed_of_light(played, unhindered, machine, sum(case.costs_ms.values()))
    return {
        "plan": f"{chosen.branches} x {chosen.components} x {chosen.period}",
        "mode": chosen.mode if chosen.components > 1 else "exact",
        "warmup": warmup,
        "step_ms": played.step_ms,
        "communication_percent": 100 * played.communication_share,
        "simulated_speedup": case.sequential_ms / case.latency_ms(played),
        "speed_of_light": asdict(light),
        "denoiser_speedup": (case.sequential_ms - case.outside_ms) / played.trajectory_ms,
    }


def compare(models: Sequence[str], published: Mapping[str, Any], counts: Sequence[int] = COUNTS) -> dict[str, Any]:
    """Everything that is printed, as documented for ``--json``."""
    rows: list[dict[str, Any]] = []
    videos: list[dict[str, Any]] = []
    ours: list[dict[str, Any]] = []
    fitted = {}
    for model in models:
        print(f"tracing and simulating {model}", file=sys.stderr)
        case = fit_model(model, published)
        fitted[model] = {
            "efficiency": case.efficiency,
            "outside_s": case.outside_ms / 1e3,
            "warmup": case.record["warmup"],
        }
        (rows if case.record["table"] == 1 else videos).extend(published_rows(case))
        ours += our_rows(case, counts)
    errors = [abs(row["error"]) for row in rows]
    shares = published["communication_share_percent"]
    return {
        "source": published["source"],
        "machine": f"{device_spec(published['device']).title}, simulated; {published['steps']} steps",
        "fitted": fitted,
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
