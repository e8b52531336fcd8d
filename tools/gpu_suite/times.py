"""Times of operators, whole denoisers and the components of plans: three parts of the suite."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from partitioner.costs.components import time_components
from partitioner.costs.lookup import apply_profile, load_profile
from partitioner.costs.measure import measure
from partitioner.costs.timing import TimingMode, measure_whole, measuring_device, summarise
from partitioner.errors import MeasureError
from profiles.cost_profile import CostProfile, WholeCheck
from tools.gpu_suite.denoisers import DenoiserGraphs, graphs_of
from tools.gpu_suite.node_calls import call_of, free
from tools.gpu_suite.splits import modes_of, profile_path, split

DEVICE_COUNTS = (2, 4, 8)


def profile(name: str, device: str, folder: Path) -> dict[str, Any]:
    """Write cost profiles with every operator of a full call and of half a guidance batch; compare sums with the whole.

    Half of the whole calls run before the operators and half after, as in tools.measure.profile.
    """
    graphs = graphs_of(name, folder)
    rows: list[dict[str, Any]] = []
    for mode in modes_of(device):
        try:
            found, check = _profile(name, graphs, mode, device)
        except MeasureError as error:
            rows.append({"mode": mode, "refused": str(error)})
            continue
        found.model_copy(update={"checks": (check,)}).save(profile_path(name, mode, folder), overwrite=True)
        rows.append(
            {
                "mode": mode,
                "dtype": found.dtype,
                "signatures": len(found.signatures),
                "summed_ms": check.summed_ms,
                "whole_ms": check.whole_ms,
                "whole_iqr_ms": check.whole_iqr_ms,
                "error": check.error,
            }
        )
    return {"denoiser": name, "profiles": rows}


def _profile(name: str, graphs: DenoiserGraphs, mode: TimingMode, device: str) -> tuple[CostProfile, WholeCheck]:
    run = call_of(graphs.whole, graphs.whole.nodes, measuring_device(device, mode))
    whole = measure_whole(run, device, mode=mode)
    found = measure(graphs.whole, device, mode=mode, command=_command())
    whole += measure_whole(run, device, mode=mode)
    if graphs.half is not None:
        half = measure(graphs.half, device, mode=mode)
        found = found.model_copy(update={"signatures": {**half.signatures, **found.signatures}})
    summary = summarise(whole)
    return found, WholeCheck(
        model=name,
        fingerprint=graphs.whole.fingerprint,
        summed_ms=sum(cost.ms for cost in apply_profile(found, graphs.whole).nodes.values()),
        whole_ms=summary.median_ms,
        whole_iqr_ms=summary.iqr_ms,
        module_ms=None,
    )


def compiled_whole(name: str, device: str, folder: Path) -> dict[str, Any]:
    """Time the whole denoiser compiled by torch, beside the sums of the recorded profiles."""
    graphs = graphs_of(name, folder)
    run = call_of(graphs.whole, graphs.whole.nodes, measuring_device(device, "eager"), compile=True)
    start = time.perf_counter()
    with torch.inference_mode():
        run()
    seconds = time.perf_counter() - start
    rows: list[dict[str, Any]] = []
    for mode in modes_of(device):
        try:
            whole_ms = statistics.median(measure_whole(run, device, mode=mode))
        except MeasureError as error:
            rows.append({"mode": mode, "refused": str(error)})
            continue
        summed = load_profile(profile_path(name, mode, folder)).checks[0].summed_ms
        rows.append({"mode": mode, "whole_ms": whole_ms, "summed_ms": summed, "error": summed / whole_ms - 1})
    return {"denoiser": name, "compile_seconds": seconds, "compiled": rows}


def components(name: str, device: str, folder: Path) -> dict[str, Any]:
    """Time all latent nodes, and each component of plans for 2, 4 and 8 devices, with one and with two branches.

    Speed-up: time of the whole over that of the slowest component, which is a step's time if all else is hidden.
    """
    graphs = graphs_of(name, folder)
    rows: list[dict[str, Any]] = []
    for count in (1, *DEVICE_COUNTS):
        for branches in (1, 2) if graphs.half is not None and count > 1 else (1,):
            graph = graphs.of(branches)
            if count == branches:
                placed, predicted = dict.fromkeys((node.name for node in graph.latent_nodes), 0), []
            else:
                found = split(name, graphs, branches, count // branches, device, folder)
                if found.split is None:
                    rows.append({"devices": count, "branches": branches, "refused": found.reason})
                    continue
                placed, predicted = dict(found.placed), [c.load_ms for c in found.evaluation.components]
            row: dict[str, Any] = {"devices": count, "branches": branches, "components": count // branches}
            row["predicted_ms"] = predicted
            for mode in modes_of(device):
                try:
                    row[f"{mode}_ms"] = time_components(graph, placed, count // branches, device, mode=mode)
                except MeasureError as error:
                    row[f"{mode}_refused"] = str(error)
                    continue
                free()
                if rows and f"{mode}_ms" in rows[0]:
                    row[f"{mode}_speedup"] = rows[0][f"{mode}_ms"][0] / max(row[f"{mode}_ms"])
            rows.append(row)
    return {"denoiser": name, "rows": rows}


def _command() -> str:
    return " ".join(["python -m tools.gpu_suite.run_part", *sys.argv[1:]])
