"""Measures how true predicted times are: errors (%) of node times against the whole, and of components' times.

    python -m tools.measure costs [--denoiser svd-like] [--ranks 2] [--json]

Measures the small denoisers of tools.denoisers on one CPU thread: every distinct operator call, the whole, and, for
each number of ranks, the components of the solver's split before and after refinement. Other work on the machine
spoils it. A machine may run at another speed when the components are measured than when the operators were. So the
whole takes turns with the components, and predictions are scaled by its time then over its time before ("pace").
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import torch

from partitioner.costs.components import component_runs
from partitioner.costs.lookup import apply_profile
from partitioner.costs.model import GivenCosts
from partitioner.costs.relative_speed import with_speeds
from partitioner.costs.timing import measure_by_turns, summarise
from partitioner.fleet import parse_fleet
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.planning.branching import Branching
from partitioner.planning.build_problem import build_problem
from partitioner.planning.candidates import Shape, solve_candidate
from partitioner.planning.remeasure import Refinement, refine_split
from partitioner.search.mode import Mode
from partitioner.search.solver import Solver
from partitioner.tables import table_text
from profiles.cost_profile import CostProfile
from tools.command import command
from tools.denoisers import DENOISERS
from tools.measure.profile import record, whole_run

RANKS = (2, 3, 4)
TARGETS = {"summed": 0.10, "predicted": 0.10, "slowest": 0.05}


def check(
    name: str, ranks: Sequence[int], mode: Mode, progress: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures of one denoiser: of the whole, and of its components for each number of ranks; times in ms."""
    profile = record(name, "cpu", "eager", "python -m tools.measure costs")
    module, inputs, roles = DENOISERS[name]()
    graph = trace(module, inputs, roles, model=name)
    run = whole_run(graph, module, inputs, torch.device("cpu"))
    (whole,) = profile.checks
    head = {
        "denoiser": name,
        "summed_ms": whole.summed_ms,
        "whole_ms": whole.whole_ms,
        "whole_iqr_ms": whole.whole_iqr_ms,
        "error": whole.error,
    }
    return head, list(component_rows(graph, profile, run, ranks, mode, progress))


class TimerBesideWhole:
    """Times components by turns with the whole, for GivenCosts; ``whole_ms``: the whole's time, each time."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self.whole_ms: list[float] = []

    def __call__(self, graph: TracedGraph, placed: Mapping[str, int], components: int) -> list[float]:
        runs = [*(make() for make in component_runs(graph, placed, components, "cpu")), self._run]
        *parts, whole = (summarise(samples).median_ms for samples in measure_by_turns(runs))
        self.whole_ms.append(whole)
        return parts


def component_rows(
    graph: TracedGraph,
    profile: CostProfile,
    run: Callable[[], Any],
    ranks: Sequence[int],
    mode: Mode,
    progress: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """For each number of ranks, what refining the solver's split found. run: a call of the whole."""
    costs = apply_profile(profile, graph)
    solver = Solver(build_problem(graph, costs))
    (then,) = profile.checks
    for count in ranks:
        progress(f"{graph.model}: {count} ranks")
        fleet = with_speeds(parse_fleet(count, "cpu"), graph, "cpu")
        shape = Shape(Branching((1,)), count, period=1, mode=mode)
        chosen = solve_candidate(lambda _rows, _calls: solver, shape, fleet)
        timer = TimerBesideWhole(run)
        model = GivenCosts(lambda _: costs, "cpu", timer=timer)
        refinement = refine_split(graph, costs, chosen, fleet, model, progress=progress)
        pace = timer.whole_ms[0] / then.whole_ms
        yield {"denoiser": graph.model, "ranks": count, "mode": mode, **_figures(refinement, pace)}


def _figures(refinement: Refinement, pace: float) -> dict[str, Any]:
    """Predicted and measured times of the first round, whose split comes from node times alone, and measured times of
    the best round, whose split is taken. pace: what predictions of the first round are multiplied by."""
    first, best = refinement.rounds[0], refinement.rounds[refinement.best]
    first = dataclasses.replace(first, predicted_ms=tuple(pace * ms for ms in first.predicted_ms))
    return {
        "predicted_ms": list(first.predicted_ms),
        "measured_ms": list(first.measured_ms),
        "error": first.error,
        "pace": pace,
        "slowest_over_mean": first.slowest,
        "refined_ms": list(best.measured_ms),
        "refined_slowest_over_mean": best.slowest,
        "rounds": len(refinement.rounds),
    }


def table(document: Mapping[str, Any]) -> str:
    """The figures as text."""
    targets = (
        f"targets: nodes sum to the whole within {TARGETS['summed']:.0%}, components are as predicted within "
        f"{TARGETS['predicted']:.0%}, the slowest of refined components within {TARGETS['slowest']:.0%} of the mean"
    )
    wholes = table_text(
        ["denoiser", "nodes sum to, ms", "whole, ms", "error"],
        [
            [row["denoiser"], f"{row['summed_ms']:.1f}", f"{row['whole_ms']:.1f}", f"{row['error']:+.1%}"]
            for row in document["whole"]
        ],
        left={0},
    )
    components = table_text(
        [
            "denoiser",
            "ranks",
            "error of components",
            "slowest over mean",
            "refined",
            "rounds",
            "pace",
            "each component",
        ],
        [
            [
                row["denoiser"],
                str(row["ranks"]),
                f"{row['error']:.1%}",
                f"{row['slowest_over_mean'] - 1:.1%}",
                f"{row['refined_slowest_over_mean'] - 1:.1%}",
                str(row["rounds"]),
                f"{row['pace']:.3f}",
                " ".join(f"{p / m - 1:+.1%}" for p, m in zip(row["predicted_ms"], row["measured_ms"], strict=True)),
            ]
            for row in document["components"]
        ],
        left={0, 7},
    )
    return "\n".join([targets, "", wholes, "", components, "", *_verdict(document)])


def _verdict(document: Mapping[str, Any]) -> Iterator[str]:
    missed = misses(document)
    yield "all targets met" if not missed else "missed: " + "; ".join(missed)


def misses(document: Mapping[str, Any]) -> list[str]:
    """The targets that were not met, a phrase for each."""
    found = [
        f"{row['denoiser']}'s nodes {row['error']:+.1%}"
        for row in document["whole"]
        if abs(row["error"]) > TARGETS["summed"]
    ]
    for row in document["components"]:
        name = f"{row['denoiser']} on {row['ranks']}"
        if row["error"] > TARGETS["predicted"]:
            found.append(f"{name} predicted {row['error']:.1%} off")
        if row["refined_slowest_over_mean"] - 1 > TARGETS["slowest"]:
            found.append(f"{name} slowest {row['refined_slowest_over_mean'] - 1:.1%} above the mean")
    return found


@command("tools.measure.costs")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 if all targets are met, 1 if not, 2 for a wrong option."""
    parser = argparse.ArgumentParser(prog="python -m tools.measure costs", description=__doc__.split("\n")[0])
    parser.add_argument("--denoiser", action="append", choices=tuple(DENOISERS), help="may be repeated (default: all)")
    parser.add_argument("--ranks", action="append", type=int, metavar="N", help="may be repeated (default: 2, 3, 4)")
    parser.add_argument("--mode", default="lookahead", choices=get_args(Mode), help="default: lookahead")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    ranks = options.ranks or RANKS
    if min(ranks) < 2:
        parser.error(f"--ranks {min(ranks)}: expected 2 or more")
    document: dict[str, list[dict[str, Any]]] = {"whole": [], "components": []}
    for name in options.denoiser or DENOISERS:
        head, rows = check(name, ranks, options.mode, lambda text: print(text, file=sys.stderr, flush=True))
        document["whole"].append(head)
        document["components"] += rows
    print(json.dumps(document, indent=1) if options.json else table(document))
    return 1 if misses(document) else 0
