"""Figures of the solver's splits: gaps to the lower bound, AsyncDiff's published splits beside ours, and a sweep."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from partitioner.baselines.asyncdiff_split import broadcast_bytes, by_module, published_split
from partitioner.costs.roofline import estimate
from partitioner.graph.ir import TracedGraph
from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from partitioner.planning.build_problem import build_problem
from partitioner.search.devices import Devices
from partitioner.search.evaluate import Evaluation, evaluate
from partitioner.search.mode import MODES
from partitioner.search.problem import Problem
from partitioner.search.solver import SWEEP, Solver
from partitioner.search.split import Split
from profiles.device_sheets import device_spec

MODELS = ("sd15", "sd21", "sdxl", "svd", "animatediff", "x4up", "sd3", "flux")
TARGETS = {2: 0.01, 3: 0.01, 4: 0.01, 8: 0.03}  # gaps by number of devices, where no single node prevents them
DEVICE = "h200"
EPSILONS = (0.005, 0.02)
SWEPT = (2, 4)  # numbers of devices


def gap_rows(model: str, problem: Problem, solver: Solver) -> Iterator[dict[str, Any]]:
    """Gap to the lower bound for each number of devices and mode; seconds: CPU time of the solver alone."""
    for count in TARGETS:
        for mode in MODES:
            devices = Devices.equal(count)
            start = time.process_time()
            split = solver.solve(devices, mode)
            seconds = time.process_time() - start
            figures, bound = split.evaluation, split.evaluation.lower_bound_ms
            yield {
                "model": model,
                "devices": count,
                "mode": mode,
                "form": split.form,
                "gap": figures.gap,
                "straddling_node": straddling_ms(problem, count, (1 + TARGETS[count]) * bound) / bound,
                "bytes_per_step": figures.bytes_per_step,
                "staleness": figures.staleness,
                "repeated_parameters": figures.repeated_bytes / max(int(problem.item_bytes.sum()), 1),
                "seconds": seconds,
            }


def straddling_ms(problem: Problem, components: int, cap_ms: float) -> float:
    """Cost of the largest node that does not fit any more where components are packed, in order, up to cap_ms each.

    It says whether a gap is due to a single node. If N components with a cap of (1 + g) x bound do not hold all the
    work, then what did not fit at their N-1 borders is more than N x g x bound in all (less what several of them
    compute). So where the best chain has a gap above g, a node that costs more than g x bound is in the way.
    """
    items: dict[int, list[int]] = {}
    for item, node in zip(problem.reading_item.tolist(), problem.reading_node.tolist(), strict=True):
        items.setdefault(node, []).append(item)
    load, largest, borders = 0.0, 0.0, 0
    held: set[int] = set()
    for v, own in enumerate(problem.cost_ms.tolist()):
        needed = set(items.get(v, ()))
        cost = own + sum(float(problem.item_cost_ms[i]) for i in needed - held)
        if load + cost > cap_ms and borders < components - 1:
            largest = max(largest, cost)
            cost = own + sum(float(problem.item_cost_ms[i]) for i in needed)
            load, held = 0.0, set()
            borders += 1
        load += cost
        held |= needed
    return largest


def asyncdiff_rows(graph: TracedGraph, problem: Problem, solver: Solver) -> Iterator[dict[str, Any]]:
    """AsyncDiff's split and ours for each number of devices for which AsyncDiff published one."""
    link = device_spec(DEVICE).link()
    for count in TARGETS:
        modules = published_split(graph.model, count)
        if modules is None:
            continue
        devices = Devices.equal(
            count,
            link_gb_per_s=link.gb_per_s,
            latency_ms=link.latency_us * 1e-3,
        )
        theirs = evaluate(problem, by_module(graph, problem, modules), devices, "async")
        ours = no_worse(solver, devices, theirs)
        yield {
            "model": graph.model,
            "devices": count,
            "lower_bound_ms": theirs.lower_bound_ms,
            "theirs": figures_of(theirs) | {"broadcast_bytes_per_step": broadcast_bytes(graph, modules)},
            "ours": figures_of(ours.evaluation) | {"form": ours.form},
        }


def no_worse(solver: Solver, devices: Devices, theirs: Evaluation) -> Split:
    """The fastest split found that is at most ``theirs`` in T, staleness and bytes; the fastest of all if none is."""
    fastest = solver.solve(devices, "async", epsilon=0.0)
    room = theirs.step_ms / fastest.evaluation.step_ms - 1
    even = theirs.staleness / theirs.bytes_per_step
    for epsilon in [e for e in EPSILONS if e < room] + [max(room, 0.0)]:
        for byte_weight in (even, even / 8, even * 8):
            split = solver.solve(devices, "async", epsilon=epsilon, byte_weight=byte_weight)
            if is_no_worse(figures_of(split.evaluation), figures_of(theirs)):
                return split
    return fastest


def sweep_rows(model: str, solver: Solver) -> Iterator[dict[str, Any]]:
    """For each epsilon the best async split whose T is at most (1 + epsilon) x the least T."""
    for count in SWEPT:
        splits = solver.sweep(Devices.equal(count), epsilons=SWEEP)
        for epsilon, split in zip(SWEEP, splits, strict=True):
            yield {"model": model, "devices": count, "epsilon": epsilon, "form": split.form} | figures_of(
                split.evaluation
            )


def figures_of(figures: Evaluation) -> dict[str, Any]:
    """The figures that are compared with AsyncDiff's."""
    return {
        "step_ms": figures.step_ms,
        "bytes_per_step": figures.bytes_per_step,
        "staleness": figures.staleness,
    }


def is_no_worse(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = 1e-9) -> bool:
    """Whether every figure that both rows have is at most theirs, within a relative tolerance."""
    return all(
        ours[key] <= theirs[key] * (1 + tolerance) + 1e-9
        for key in ("step_ms", "gap", "staleness", "bytes_per_step")
        if key in ours and key in theirs
    )


def document(models: Sequence[str]) -> dict[str, Any]:
    """All rows of these models."""
    gaps: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    for model in models:
        graph, problem = traced(model)
        solver = Solver(problem)
        gaps += gap_rows(model, problem, solver)
        compared += asyncdiff_rows(graph, problem, solver)
    return {"gaps": gaps, "asyncdiff": compared}


def traced(model: str) -> tuple[TracedGraph, Problem]:
    """A model's graph at its usual size, and its search problem."""
    print(f"{model}: tracing", file=sys.stderr)
    graph = trace_model(model_spec(model))
    return graph, build_problem(graph, estimate(graph, DEVICE))
