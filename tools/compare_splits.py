"""compare_splits: how near the solver comes to the lower bound, and how its splits compare with AsyncDiff's published.

python -m tools.compare_splits [--model sdxl] [--update | --sweep]

Costs are a roofline of an H200 at each model's usual size. "gaps": devices without communication costs, so that only
the split counts. "asyncdiff": NVLink, and of the splits that the solver offers the fastest one that is no worse than
AsyncDiff's in any figure. The figures are compared with golden_splits.json, where none may ever become worse: exit code
1 if one has; --update writes the improved ones. --sweep: what a slower step buys in staleness and bytes instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from partitioner.baselines.asyncdiff_split import broadcast_bytes, by_module, published_split
from partitioner.costs.roofline import estimate
from partitioner.graph.ir import TracedGraph
from partitioner.models.spec import model_spec, trace_model
from partitioner.planning.build_problem import build_problem
from partitioner.search.devices import Devices
from partitioner.search.evaluate import Evaluation, evaluate
from partitioner.search.mode import MODES
from partitioner.search.problem import Problem
from partitioner.search.solver import SWEEP, Solver, Split
from profiles.device_sheets import device_spec
from profiles.json_files import canonical_bytes, read_json, write_atomic

GOLDEN = Path(__file__).with_name("golden_splits.json")
MODELS = ("sd15", "sd21", "sdxl", "svd", "animatediff", "x4up", "sd3", "flux")
TARGETS = {2: 0.01, 3: 0.01, 4: 0.01, 8: 0.03}  # gaps by number of devices, where no single node prevents them
DEVICE = "h200"
EPSILONS = (0.005, 0.02)
TOLERANCE = 1e-3  # relative; other versions of torch trace slightly different graphs
SWEPT = (2, 4)  # numbers of devices
Row = dict[str, Any]


def gap_rows(model: str, problem: Problem, solver: Solver) -> Iterator[Row]:
    """Gap to the lower bound, for each number of devices and mode; seconds are CPU time, the solver's own."""
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

    If N components do not hold all the work at a cap of (1 + g) x bound, what did not fit at their N-1 borders is more
    than N x g x bound in all (less what they compute several times). So a chain of the best T whose gap is above g is
    prevented by a node of more than that.
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


def asyncdiff_rows(graph: TracedGraph, problem: Problem, solver: Solver) -> Iterator[Row]:
    """AsyncDiff's split and ours, for each number of devices for which one was published."""
    link = device_spec(DEVICE).link()
    for count in TARGETS:
        modules = published_split(graph.model, count)
        if modules is None:
            continue
        devices = Devices.equal(
            count,
            link_gb_per_s=link.duplex_gb_per_s / 2 * link.efficiency,
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
    """A split that is at most ``theirs`` in T, staleness and bytes, the faster the better; without one, the fastest."""
    fastest = solver.solve(devices, "async", epsilon=0.0)
    room = theirs.step_ms / fastest.evaluation.step_ms - 1
    even = theirs.staleness / theirs.bytes_per_step
    for epsilon in [e for e in EPSILONS if e < room] + [max(room, 0.0)]:
        for byte_weight in (even, even / 8, even * 8):
            split = solver.solve(devices, "async", epsilon=epsilon, byte_weight=byte_weight)
            if is_no_worse(figures_of(split.evaluation), figures_of(theirs)):
                return split
    return fastest


def sweep_rows(model: str, solver: Solver) -> Iterator[Row]:
    """The best split in async for each epsilon: T at most (1 + epsilon) x the least."""
    for count in SWEPT:
        splits = solver.sweep(Devices.equal(count), epsilons=SWEEP)
        for epsilon, split in zip(SWEEP, splits, strict=True):
            yield {"model": model, "devices": count, "epsilon": epsilon, "form": split.form} | figures_of(
                split.evaluation
            )


def sweep_table(rows: Sequence[Row]) -> str:
    lines = ["model        N  epsilon  form          T ms  staleness   MB/step"]
    for row in rows:
        lines.append(
            f"{row['model']:12} {row['devices']}  {row['epsilon']:7.2%}  {row['form']:10} {row['step_ms']:7.3f}  "
            f"{row['staleness']:9.3f}  {row['bytes_per_step'] / 1e6:8.1f}"
        )
    return "\n".join(lines)


def figures_of(figures: Evaluation) -> Row:
    return {
        "step_ms": figures.step_ms,
        "bytes_per_step": figures.bytes_per_step,
        "staleness": figures.staleness,
    }


def is_no_worse(ours: Row, theirs: Row, tolerance: float = 1e-9) -> bool:
    """Whether every figure that both have is at most theirs, but for the tolerance (relative)."""
    return all(
        ours[key] <= theirs[key] * (1 + tolerance) + 1e-9
        for key in ("step_ms", "gap", "staleness", "bytes_per_step")
        if key in ours and key in theirs
    )


def document(models: Sequence[str]) -> Row:
    """All rows for these models."""
    gaps: list[Row] = []
    compared: list[Row] = []
    for model in models:
        graph, problem = traced(model)
        solver = Solver(problem)
        gaps += gap_rows(model, problem, solver)
        compared += asyncdiff_rows(graph, problem, solver)
    return {"gaps": gaps, "asyncdiff": compared}


def traced(model: str) -> tuple[TracedGraph, Problem]:
    """The model's graph at its usual size, and its problem."""
    print(f"{model}: tracing", file=sys.stderr)
    graph = trace_model(model_spec(model))
    return graph, build_problem(graph, estimate(graph, DEVICE))


def worse_rows(found: Row, golden: Row) -> list[str]:
    """What is worse than in the golden file, or new to it, in words."""
    known = {_key(row): row for row in golden["gaps"] + golden["asyncdiff"]}
    complaints = []
    for row in found["gaps"] + found["asyncdiff"]:
        before = known.get(_key(row))
        if before is None:
            complaints.append(f"{_name(row)} is not in the golden file")
        elif not is_no_worse(row.get("ours", row), before.get("ours", before), TOLERANCE):
            complaints.append(f"{_name(row)} got worse: {row.get('ours', row)}, was {before.get('ours', before)}")
    return complaints


def _key(row: Row) -> tuple[str, int, str]:
    return row["model"], row["devices"], row.get("mode", "asyncdiff")


def _name(row: Row) -> str:
    return "{} on {} devices ({})".format(*_key(row))


def table(found: Row) -> str:
    """Both tables as text."""
    lines = ["model        N  mode       form            gap  straddling   MB/step  staleness  copies  seconds"]
    for row in found["gaps"]:
        lines.append(
            f"{row['model']:12} {row['devices']}  {row['mode']:10} {row['form']:10} {row['gap']:8.2%}  "
            f"{row['straddling_node']:10.2%}  {row['bytes_per_step'] / 1e6:8.1f}  {row['staleness']:9.3f}  "
            f"{row['repeated_parameters']:6.2%}  {row['seconds']:7.2f}"
        )
    lines += ["", "model        N  AsyncDiff's T/bound  staleness  MB read  MB sent  our T/bound  staleness  MB sent"]
    for row in found["asyncdiff"]:
        theirs, ours, bound = row["theirs"], row["ours"], row["lower_bound_ms"]
        lines.append(
            f"{row['model']:12} {row['devices']}  {theirs['step_ms'] / bound:19.3f}  {theirs['staleness']:9.3f}  "
            f"{theirs['bytes_per_step'] / 1e6:7.1f}  {theirs['broadcast_bytes_per_step'] / 1e6:7.1f}  "
            f"{ours['step_ms'] / bound:11.3f}  {ours['staleness']:9.3f}  {ours['bytes_per_step'] / 1e6:7.1f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.compare_splits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one; may be given several times")
    parser.add_argument("--update", action="store_true", help="write what has improved, or is new, to the golden file")
    parser.add_argument("--sweep", action="store_true", help="show what a slower step buys in staleness and bytes")
    options = parser.parse_args(arguments)
    if options.sweep:
        print(sweep_table([row for m in options.model or MODELS for row in sweep_rows(m, Solver(traced(m)[1]))]))
        return 0
    found = document(options.model or MODELS)
    print(table(found))
    golden: Any = read_json(GOLDEN, 1_000_000) if GOLDEN.exists() else {"gaps": [], "asyncdiff": []}
    complaints = worse_rows(found, golden)
    if options.update:
        complaints = [text for text in complaints if not text.endswith("is not in the golden file")]
    for text in complaints:
        print(text, file=sys.stderr)
    if options.update and not complaints:
        write_atomic(GOLDEN, canonical_bytes(merged(golden, found)), overwrite=True)
    return 1 if complaints else 0


def merged(golden: Row, found: Row) -> Row:
    """The golden rows, with those that were found now in the place of the old ones; without times."""
    result: Row = {}
    for part in ("gaps", "asyncdiff"):
        rows = {_key(row): row for row in [*golden[part], *found[part]]}
        order = sorted(rows, key=lambda key: (MODELS.index(key[0]), key[1:]))
        result[part] = [{name: value for name, value in rows[key].items() if name != "seconds"} for key in order]
    return result


if __name__ == "__main__":
    sys.exit(main())
