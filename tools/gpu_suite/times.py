"""Times of operators, whole denoisers and the components of plans: parts of the suite. All times in ms."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

from partitioner.costs.components import time_components
from partitioner.costs.lookup import apply_profile, load_profile
from partitioner.costs.measure import measure
from partitioner.costs.timing import TimingMode, measure_whole, summarise
from partitioner.errors import MeasureError
from partitioner.graph.ir import TracedGraph
from profiles.cost_profile import CostProfile, WholeCheck
from tools.gpu_suite.denoisers import graphs_of
from tools.gpu_suite.node_calls import call_of, free
from tools.gpu_suite.part_run import PartRun
from tools.gpu_suite.plans import cost_model_of, modes_of, plan_of

COUNTS = (1, 2, 4)  # of components
SLOW_MS = 300.0  # a whole call that takes longer is timed less often
LIMIT_S = 90.0  # for having the device in one go


def profile(run: PartRun) -> dict[str, Any]:
    """Record a profile of every operator of a full call, and compare their sum with the whole.

    Half of the whole calls run before the operators and half after, as in tools.measure.profile. On a GPU they are
    replayed from CUDA graphs; how long the whole takes without them is noted.
    """
    return _profile(run, "profile", modes_of(run)[0])


def eager(run: PartRun) -> dict[str, Any]:
    """The same for calls that the host makes one after the other."""
    return _profile(run, "eager", "eager")


def _profile(run: PartRun, kind: str, mode: TimingMode) -> dict[str, Any]:
    graph = graphs_of(run.denoiser, run.folder).whole
    document: dict[str, Any] = {"denoiser": run.denoiser, "mode": mode, "nodes": len(graph.nodes)}
    with run.alone(LIMIT_S):
        times = _whole_ms(run, graph, "eager", mode)
        whole = times[mode]
        document |= {f"{name}_whole_ms": statistics.median(found) for name, found in times.items()}
        run.save(document)
        found = measure(
            graph,
            run.device,
            mode=mode,
            command=f"python -m tools.gpu_suite --part {kind}-{run.denoiser}",
            progress=_progress(run),
        )
        whole += _whole_ms(run, graph, mode)[mode]
    summary = summarise(whole)
    costs = apply_profile(found, graph)
    check = WholeCheck(
        model=run.denoiser,
        fingerprint=graph.fingerprint,
        summed_ms=sum(cost.ms for cost in costs.nodes.values()),
        whole_ms=summary.median_ms,
        whole_iqr_ms=summary.iqr_ms,
        module_ms=None,
    )
    found = found.model_copy(update={"checks": (check,)})
    found.save(run.folder / f"{run.denoiser}.{mode}.profile.json", overwrite=True)
    checked = {"summed_ms": check.summed_ms, "whole_iqr_ms": check.whole_iqr_ms, "error": check.error}
    return {
        **document,
        "whole_ms": check.whole_ms,
        **checked,
        "dtype": found.dtype,
        "signatures": len(found.signatures),
    }


def half(run: PartRun) -> dict[str, Any]:
    """Add the operators of a call with one half of the guidance batch to the recorded profile, and time it whole."""
    graph = graphs_of(run.denoiser, run.folder).half
    if graph is None:
        return {"denoiser": run.denoiser, "refused": "its calls hold no guidance batch"}
    mode = modes_of(run)[0]
    path = run.folder / f"{run.denoiser}.{mode}.profile.json"
    with run.alone(LIMIT_S):
        whole_ms = statistics.median(_whole_ms(run, graph, mode)[mode])
        found = measure(graph, run.device, mode=mode, progress=_progress(run))
    recorded = load_profile(path)
    recorded = recorded.model_copy(update={"signatures": {**found.signatures, **recorded.signatures}})
    recorded.save(path, overwrite=True)
    summed_ms = _summed_ms(recorded, graph)
    return {"denoiser": run.denoiser, "whole_ms": whole_ms, "summed_ms": summed_ms, "error": summed_ms / whole_ms - 1}


def _whole_ms(run: PartRun, graph: TracedGraph, *modes: TimingMode) -> dict[TimingMode, list[float]]:
    """Times of whole calls in each mode; all their memory is given back."""
    call = call_of(graph, graph.nodes, run.target)
    times: dict[TimingMode, list[float]] = {}
    calls = 2
    for mode in dict.fromkeys(modes):
        times[mode] = measure_whole(call, run.device, mode=mode, calls=calls)
        if calls == 2 and min(times[mode]) < SLOW_MS:
            calls = 5
            times[mode] = measure_whole(call, run.device, mode=mode, calls=calls)
    del call
    free()
    return times


def _summed_ms(recorded: CostProfile, graph: TracedGraph) -> float:
    return sum(cost.ms for cost in apply_profile(recorded, graph).nodes.values())


def _progress(run: PartRun) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        run.give_way()
        if done == total or done % 50 == 0:
            print(f"measured {done} of {total} signatures", file=sys.stderr, flush=True)

    return progress


def components(run: PartRun) -> dict[str, Any]:
    """Time each component of plans for several devices alone, beside what the recorded profile predicts.

    Speed-up: time of all latent nodes over that of the slowest component, which is a step's time if all else is hidden.
    """
    graph = graphs_of(run.denoiser, run.folder).whole
    costs = cost_model_of(run)(graph)
    document: dict[str, Any] = {"denoiser": run.denoiser, "costs": costs.source, "rows": []}
    whole: dict[str, float] = {}
    for count in COUNTS:
        if count == 1:
            placed = dict.fromkeys((node.name for node in graph.latent_nodes), 0)
        else:
            placed = plan_of(run, graph, count).place(graph)
        predicted = [0.0] * count
        for node in graph.latent_nodes:
            predicted[placed[node.name]] += costs.nodes[node.name].ms
        row: dict[str, Any] = {"components": count, "predicted_ms": predicted}
        document["rows"].append(row)
        for mode in modes_of(run):
            try:
                with run.alone(LIMIT_S):
                    times = time_components(graph, placed, count, run.device, mode=mode)
                    free()
            except MeasureError as error:
                row[f"{mode}_refused"] = str(error)
                continue
            whole.setdefault(mode, sum(times))
            row |= {f"{mode}_ms": times, f"{mode}_speedup": whole[mode] / max(times)}
            row[f"{mode}_errors"] = [told / took - 1 for told, took in zip(predicted, times, strict=True)]
            run.save(document)
    return document
