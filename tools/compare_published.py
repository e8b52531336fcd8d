"""compare_published: AsyncDiff's published speed-ups beside the simulator's, then what this project's plans reach.

python -m tools.compare_published [--model sd15] [--json]

Everything printed but the published columns is SIMULATED, on the machine of published_machine.py. AsyncDiff is played
as its code runs it: its own splits, a blocking broadcast of every hooked module's output, the whole pipeline on every
rank. Latencies are those of a whole pipeline call, so they hold the decoding of the latents.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import mean
from typing import Any

from partitioner.baselines.asyncdiff_simulation import simulate_asyncdiff
from partitioner.baselines.asyncdiff_split import published_split
from partitioner.fleet import Device
from partitioner.plan.schedule import Schedule
from partitioner.planning.candidates import Candidate
from partitioner.planning.options import Options
from partitioner.planning.planner import Planning, plan_graphs
from partitioner.simulator.simulate import Simulation, simulate
from partitioner.simulator.speed_of_light import speed_of_light, without_communication
from profiles.device_sheets import device_spec
from tools.published_machine import Case, load_case, machine_of, read_published, wire_of

COUNTS = (2, 3, 4, 8)
LINKS = ("nvlink", "pcie")


def play_asyncdiff(case: Case, config: str, link: str = "nvlink") -> Simulation:
    """A configuration of the paper: "N3S2" is three components with stride 2."""
    components, stride = int(config[1]), int(config[3])
    modules = published_split(case.model, components)
    assert modules is not None
    machine = machine_of(case.spec, components + stride - 1, link)
    warmup = int(case.record["warmup"])
    return simulate_asyncdiff(
        case.whole, modules, case.costs_ms, machine, calls=case.steps, stride=stride, warmup=warmup
    )


def published_rows(case: Case) -> Iterator[dict[str, Any]]:
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


def our_rows(case: Case, counts: Sequence[int] = COUNTS) -> Iterator[dict[str, Any]]:
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


def plan_case(case: Case, count: int, **options: Any) -> Planning:
    """The planner's plan for so many of the case's GPUs. It knows one link per device: PCIe, since bridges do not reach
    everyone."""
    wire = wire_of(case.spec, "pcie")
    device = Device(case.costs.device, case.spec.memory_bytes, wire.gb_per_s, wire.latency_ms)
    costs = {id(case.whole): case.costs, id(case.half): case.half_costs}
    return plan_graphs(
        case.whole,
        case.half,
        (device,) * count,
        lambda graph: costs[id(graph)],
        Options(driver_ms=case.spec.driver_ms, **options),
    )


def _played(case: Case, chosen: Candidate, warmup: int, link: str) -> dict[str, Any]:
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
        case = load_case(model, published)
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


def table(document: Mapping[str, Any]) -> str:
    """The document for people."""
    lines = [f"published: {document['source']}", f"machine: {document['machine']}", ""]
    for model, fit in document["fitted"].items():
        lines.append(
            f"{model:12} every operator class reaches {fit['efficiency']:.1%} of its peak, fitted to one GPU's "
            f"published latency alone; {fit['outside_s']:.2f} s besides the denoiser; warm-up {fit['warmup']}"
        )
    for title, key in (("AsyncDiff, Table 1", "rows"), ("AsyncDiff, Table 4", "videos")):
        if document[key]:
            lines += ["", f"{title:23}{'published':>11}{'SIMULATED':>11}{'error':>8}{'published':>13}{'SIMULATED':>13}"]
            lines += [_published_line(row) for row in document[key]]
        if key == "rows" and document[key]:
            lines.append(
                f"mean absolute error {document['mean_absolute_error']:.1%}, largest {document['largest_error']:.1%}, "
                f"of {len(document['rows'])} speed-ups"
            )
    if document["communication"]:
        lines += ["", f"{'communication, Table 6':23}{'published':>11}{'SIMULATED':>11}"]
        for row in document["communication"]:
            lines.append(
                f"{'':12} {row['config']:10}{row['published_percent']:9.1f} %{row['simulated_percent']:9.1f} %"
            )
    return "\n".join([*lines, "", *_our_lines(document["ours"])])


def _published_line(row: Mapping[str, Any]) -> str:
    return (
        f"{row['model']:12} {row['config']:10}{row['published_speedup']:9.2f} x{row['simulated_speedup']:9.2f} x"
        f"{row['error']:+8.1%}{row['published_latency_s']:11.2f} s{row['simulated_latency_s']:11.2f} s"
    )


def _our_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "this project's plans on the same machine, all SIMULATED; plan: branches x components x period"
    head = f"{'':12} {'devices':>7} {'plan':>10} {'mode':>10} {'warm-up':>8}  {'asked for':24}"
    yield head + "".join(f"{link:>10}" for link in LINKS)
    by_plan: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_plan.setdefault((row["model"], row["devices"], row["asked"]), []).append(row)
    for (model, devices, asked), same in by_plan.items():
        first = same[0]
        columns = "".join(f"{row['simulated_speedup']:8.2f} x" for row in same)
        yield f"{model:12} {devices:7} {first['plan']:>10} {first['mode']:>10} {first['warmup']:8}  {asked:24}{columns}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0."""
    published = read_published()
    parser = argparse.ArgumentParser(prog="python -m tools.compare_published", description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", choices=list(published["models"]), help="default: all")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    document = compare(options.model or list(published["models"]), published)
    print(json.dumps(document, indent=1, allow_nan=False) if options.json else table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
