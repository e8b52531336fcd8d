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
from dataclasses import replace
from statistics import mean
from typing import Any

from partitioner.baselines import published_split
from partitioner.candidates import Candidate, Options, choose, find_candidates
from partitioner.cost import GraphCosts
from partitioner.fleet import Device, Fleet
from partitioner.graph import build_problem
from partitioner.ir import TracedGraph
from partitioner.problem import Problem
from partitioner.schedule import Schedule
from partitioner.simulate import Simulation, simulate
from partitioner.simulate_asyncdiff import simulate_asyncdiff
from profiles.devices import DeviceSpec, device_spec
from tools.published_machine import DRIVER_MS, Case, load_case, machine_of, read_published, wire_of

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
    """What the planner's choice reaches on the same machine, for each number of devices and link."""
    graphs = {1: case.whole, 2: case.half}
    costs = {1: case.costs_ms, 2: case.half_costs_ms}
    problems = {1: with_driver(case.whole, case.costs), 2: with_driver(case.half, case.half_costs)}
    found: dict[Fleet, Candidate] = {}
    for count in counts:
        for link in LINKS:
            fleet = fleet_of(case.spec, count, link)
            chosen = found[fleet] = found.get(fleet) or best_of(problems, fleet)
            warmup = warmup_of(chosen)
            played = simulate(
                graphs[chosen.branches],
                chosen.placed,
                costs[chosen.branches],
                machine_of(case.spec, chosen.ranks, link),
                Schedule(chosen.components, chosen.mode, warmup, chosen.periods),
                calls=case.steps,
                branches=chosen.branches,
            )
            yield {
                "model": case.model,
                "devices": count,
                "link": link,
                "plan": f"{chosen.branches} x {chosen.components} x {chosen.period}",
                "mode": chosen.mode,
                "warmup": warmup,
                "step_ms": played.step_ms,
                "communication_percent": 100 * played.communication_share,
                "simulated_speedup": case.sequential_ms / case.latency_ms(played),
                "denoiser_speedup": (case.sequential_ms - case.outside_ms) / played.trajectory_ms,
            }


def with_driver(graph: TracedGraph, costs: GraphCosts) -> Problem:
    """The problem of a graph whose result also costs the driver's own work, so that its rank gets less of the rest."""
    problem = build_problem(graph, costs)
    times = problem.cost_ms.copy()
    times[-1] += DRIVER_MS
    return replace(problem, cost_ms=times)


def best_of(problems: Mapping[int, Problem], fleet: Fleet) -> Candidate:
    """The planner's choice, by its defaults."""
    options = Options()
    candidates = list(find_candidates(problems, fleet, options, lambda _: None))
    return choose(candidates, len(fleet), options, problems[1].total_ms, problems[1], fleet)


def fleet_of(spec: DeviceSpec, count: int, link: str) -> Fleet:
    """The planner's view of the machine; it has one link per device, so beyond a pair that is PCIe."""
    wire = wire_of(spec, link if count == 2 else "pcie")
    return (Device("a5000", spec.memory_bytes, wire.gb_per_s, wire.latency_ms, speed=1.0),) * count


def warmup_of(chosen: Candidate) -> int:
    """The paper's one step, or as many as it takes to fill a look-ahead pipe."""
    return max(1, chosen.components - 1) if chosen.mode == "lookahead" else 1


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
            f"{model:12} efficiencies of the data sheet x {fit['efficiency']:.2f}, fitted to one GPU's published "
            f"latency; {fit['outside_s']:.2f} s besides the denoiser; warm-up {fit['warmup']}"
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
    yield "this project on the same machine, all SIMULATED; plan: branches x components x period"
    head = f"{'':12} {'devices':>7} {'plan':>10} {'mode':>10} {'warm-up':>8}"
    yield head + "".join(f"{link:>10}" for link in LINKS)
    by_count: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_count.setdefault((row["model"], row["devices"]), []).append(row)
    for (model, devices), same in by_count.items():
        first = same[0]
        columns = "".join(f"{row['simulated_speedup']:8.2f} x" for row in same)
        yield f"{model:12} {devices:7} {first['plan']:>10} {first['mode']:>10} {first['warmup']:8}{columns}"


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
