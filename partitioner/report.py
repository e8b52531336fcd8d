"""report: a plan's figures as one JSON document, and that document as a readable table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from partitioner.plan.plan import Plan
from partitioner.plan.ranks import seat_of
from partitioner.planning.expected_quality import ANY, MARGIN_DB, Advice, SamplingSetup
from partitioner.simulator.speed_of_light import SpeedOfLight

if TYPE_CHECKING:
    from partitioner.planning.planner import Planning

_MODES = {"lookahead": "look-ahead", "async": "async"}


def describe(plan: Plan, path: str | None, sampling: SamplingSetup = ANY) -> dict[str, Any]:
    """What a plan says of itself, as documented for ``partition-model --json``. Times in ms, sizes in bytes.

    sampling: the trajectory that speedup_trajectory is given for.
    """
    predicted = plan.predicted
    return {
        "plan": path,
        "model": plan.model,
        "class_name": plan.class_name,
        "fingerprint": plan.fingerprint,
        "devices": list(plan.devices),
        "branches": plan.branches,
        "components_per_branch": plan.components,
        "mode": plan.mode,
        "period": plan.period,
        "warmup": plan.warmup,
        "predictor": plan.predictor,
        "cost_source": f"{plan.cost_source.kind} {plan.cost_source.device}",
        "cost_covered": plan.cost_source.covered,
        "sequential_ms": predicted.sequential_ms,
        "step_ms": predicted.step_ms,
        "exact_step_ms": predicted.exact_step_ms,
        "lower_bound_ms": predicted.lower_bound_ms,
        "gap": predicted.gap,
        "speedup_step": predicted.speedup_step,
        "speedup_trajectory": plan.speedup(sampling.steps, sampling.scheduler),
        "steps": sampling.steps,
        "speed_of_light": asdict(light_of(plan, sampling)),
        "bytes_per_step": predicted.bytes_per_step,
        "staleness": predicted.staleness,
        "macs": predicted.macs,
        "components": [_component(plan, rank) for rank in range(plan.ranks)],
    }


def describe_search(planning: Planning, seconds: Mapping[str, float]) -> dict[str, Any]:
    """How the plan was found: what else was considered, the baselines, and the time that it took."""
    certificate, refinement = planning.certificate, planning.refinement
    return {
        "quality": planning.advice and _quality(planning.advice),
        "idle_devices": planning.idle,
        "proof": certificate
        and {"result": str(certificate), "bound_ms": round(certificate.bound_ms, 6), "clusters": certificate.clusters},
        "refinement": refinement
        and [
            {
                "predicted_ms": list(round_.predicted_ms),
                "measured_ms": list(round_.measured_ms),
                "error": round_.error,
                "slowest_over_mean": round_.slowest,
                "best": number == refinement.best,
            }
            for number, round_ in enumerate(refinement.rounds)
        ],
        "candidates": [
            {
                "branches": candidate.branches,
                "components": candidate.components,
                "mode": candidate.mode,
                "period": candidate.period,
                "chosen": candidate is planning.chosen,
                "reason": candidate.reason,
                "margin_db": None if margin is None else round(margin, 2),
                "step_ms": None if candidate.reason else round(candidate.step_ms, 6),
                "staleness": None if candidate.reason else round(candidate.evaluation.staleness, 6),
                "bytes_per_step": None if candidate.reason else candidate.bytes_per_step,
                "memory_bytes": None if candidate.reason else candidate.memory_bytes,
            }
            for candidate, margin in zip(planning.candidates, planning.margins_db, strict=True)
        ],
        "baselines": {
            name: {key: value for key, value in asdict(baseline).items() if value is not None}
            for name, baseline in planning.baselines.items()
        },
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def light_of(plan: Plan, sampling: SamplingSetup) -> SpeedOfLight:
    """Where the predicted speed-up goes, one loss after the other; ideal is the number of devices."""
    predicted = plan.predicted
    computes = [
        figures.compute_ms / plan.periods[k % plan.components] for k, figures in enumerate(predicted.components)
    ]
    slowest = max(computes)
    return SpeedOfLight(
        ideal=float(plan.ranks),
        balanced=round(predicted.sequential_ms / slowest, 6) if slowest > 0 else 1.0,
        connected=predicted.speedup_step,
        remaining=plan.speedup(sampling.steps, sampling.scheduler),
        calls=sampling.steps,
    )


def _quality(advice: Advice) -> dict[str, Any]:
    exact = advice.psnr_db == math.inf
    return {
        "exact": exact,
        "psnr_db": None if exact else advice.psnr_db,
        "fewer_steps_psnr_db": None if advice.fewer_steps_db is None else round(advice.fewer_steps_db, 2),
        "fewer_steps_better": advice.against,
        "steps": advice.sampling.steps,
        "scheduler": advice.sampling.scheduler,
    }


def _quality_lines(quality: Mapping[str, Any]) -> list[str]:
    if quality["exact"]:
        return ["quality          exact: the output is the sequential one's"]
    sampler = quality["scheduler"] or "the worst sampler that was measured"
    where = f"{quality['steps']} steps, {sampler}"
    if quality["psnr_db"] is None:
        return [f"quality          not measured near this case ({where})"]
    fewer = quality["fewer_steps_psnr_db"]
    beside = "" if fewer is None else f"; fewer sequential steps in the same time: {fewer:.1f} dB"
    lines = [f"quality          {quality['psnr_db']:.1f} dB against sequential where it was measured ({where}){beside}"]
    if quality["fewer_steps_better"]:
        lines.append("note             fewer steps on one device were as good; prefer them, or use fewer components")
    return lines


def _idle_line(document: Mapping[str, Any]) -> str:
    doubted = any(c["margin_db"] is not None and c["margin_db"] < MARGIN_DB for c in document["candidates"])
    because = (
        f"over more, fewer steps on one device were seen to come within {MARGIN_DB:g} dB" if doubted else "see below"
    )
    return f"note             {document['idle_devices']} left idle: {because}; --prefer speed uses them"


def _component(plan: Plan, rank: int) -> dict[str, Any]:
    branch, component = seat_of(rank, plan.components)
    figures = plan.predicted.components[branch * plan.components + component]
    runs = [
        [key for key, _ in run]
        for owner, run in groupby(plan.placement.items(), lambda item: item[1])
        if owner == component
    ]
    return {
        "rank": rank,
        "branch": branch,
        "component": component,
        "device": plan.devices[rank],
        "nodes": sum(map(len, runs)),
        "pieces": len(runs),
        "period": plan.periods[component],
        "compute_ms": figures.compute_ms,
        "macs": figures.macs,
        "parameters": figures.parameters,
        "parameter_bytes": figures.parameter_bytes,
        "memory_bytes": figures.memory_bytes,
        "receive_bytes": figures.receive_bytes,
        "send_bytes": figures.send_bytes,
        "modules": " + ".join(map(_range, runs)),
    }


def _range(keys: Sequence[str]) -> str:
    """'first.module .. last.module' of a run of node keys; an operator outside every module stands for itself."""
    first, last = (key.split("/")[0] or key[1:] for key in (keys[0], keys[-1]))
    return first if first == last else f"{first} .. {last}"


def table(document: Mapping[str, Any]) -> str:
    """The document as text for people. Figures that a data sheet gave, not a clock, are called estimates."""
    kind, _, device = document["cost_source"].partition(" ")
    estimate = kind == "roofline"
    ms = "ms (estimate)" if estimate else "ms"
    source = (
        f"roofline estimate for {device}; nothing was measured"
        if estimate
        else f"measured on {device} ({document['cost_covered']:.1%} of the time"
        f"{'' if document['cost_covered'] > 0.9995 else '; the rest by a roofline calibrated on that'})"
    )
    devices = ", ".join(f"{len(list(same))} x {name}" for name, same in groupby(document["devices"]))
    mode = _MODES[document["mode"]]
    period = f", period {document['period']}" if document["period"] > 1 else ""
    lines = [
        f"{document['model']} ({document['class_name']}) on {devices}: {document['branches']} branch"
        f"{'es' if document['branches'] > 1 else ''} x {document['components_per_branch']} component"
        f"{'s' if document['components_per_branch'] > 1 else ''}, {mode}{period}, warm-up {document['warmup']}, "
        f"predictor {document['predictor']}",
        f"costs: {source}",
        "",
        *_component_table(document, ms),
        "",
        f"predicted step   {document['step_ms']:.4g} {ms}, sequential {document['sequential_ms']:.4g} {ms}: "
        f"speed-up {document['speedup_step']:.2f} x",
        f"trajectory       speed-up {document['speedup_trajectory']:.2f} x over {document['steps']} steps with warm-up"
        f"{', an estimate' if estimate else ''}",
        f"speed of light   {SpeedOfLight(**document['speed_of_light'])}{', an estimate' if estimate else ''}",
        f"lower bound      {document['lower_bound_ms']:.4g} {ms}; slowest component {document['gap']:.2%} above it",
        f"sent             {_size(document['bytes_per_step'])} per step; staleness {document['staleness']:.4g}",
        f"denoiser         {document['macs'] / 1e12:.4g} T multiply-accumulates per call",
    ]
    if document.get("quality"):
        lines += _quality_lines(document["quality"])
    if document.get("idle_devices"):
        lines.append(_idle_line(document))
    if document.get("proof"):
        proof = document["proof"]
        lines.append(
            f"proof            {proof['result']}: no placement of {proof['clusters']} clusters takes less than "
            f"{proof['bound_ms']:.4g} {ms}"
        )
    if document.get("refinement"):
        rounds = document["refinement"]
        errors = ", ".join(f"{entry['error']:.1%}" for entry in rounds)
        slowest = ", ".join(f"{entry['slowest_over_mean'] - 1:.1%}" for entry in rounds)
        best = next(number for number, entry in enumerate(rounds, start=1) if entry["best"])
        lines += [
            f"refinement       whole components differed from the sum of their nodes by up to {errors}",
            f"                 the slowest was {slowest} above the mean; taken: round {best} of {len(rounds)}",
        ]
    if document.get("baselines"):
        lines += ["", *_baseline_table(document, ms)]
    if document.get("candidates"):
        lines += ["", *_candidate_table(document, ms)]
    if document.get("seconds"):
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in document["seconds"].items())
        lines += ["", f"seconds          {seconds}"]
    if document["plan"]:
        lines += ["", f"plan             {document['plan']}"]
    return "\n".join(lines)


def _component_table(document: Mapping[str, Any], ms: str) -> list[str]:
    total = sum(component["compute_ms"] for component in document["components"]) or 1.0
    rows = [["rank", "branch", "component", "device", "modules", ms, "share", "parameters", "memory", "in", "out"]]
    for c in document["components"]:
        rows.append([
            str(c["rank"]), str(c["branch"]), str(c["component"]), c["device"], _short(c["modules"]),
            f"{c['compute_ms']:.4g}", f"{c['compute_ms'] / total:.1%}", f"{c['parameters'] / 1e6:.1f} M",
            _size(c["memory_bytes"]), _size(c["receive_bytes"]), _size(c["send_bytes"]),
        ])  # fmt: skip
    return _aligned(rows, left={3, 4})


def _baseline_table(document: Mapping[str, Any], ms: str) -> list[str]:
    rows = [["compared with", f"step {ms}", "sent per step", "staleness"]]
    for name, figures in document["baselines"].items():
        sent = _size(figures["bytes_per_step"])
        if "broadcast_bytes_per_step" in figures:
            sent += f" (its code broadcasts {_size(figures['broadcast_bytes_per_step'])})"
        rows.append([name.replace("_", " "), f"{figures['step_ms']:.4g}", sent, f"{figures['staleness']:.4g}"])
    return _aligned(rows, left={0, 2})


def _candidate_table(document: Mapping[str, Any], ms: str) -> list[str]:
    rows = [["considered", "mode", f"step {ms}", "staleness", "sent per step", "largest memory", ""]]
    for c in document["candidates"]:
        name = f"{c['branches']} x {c['components']}" + (f", period {c['period']}" if c["period"] > 1 else "")
        mode = "exact" if c["components"] == 1 else _MODES[c["mode"]]
        if c["reason"]:
            rows.append([name, mode, "-", "-", "-", "-", c["reason"]])
        else:
            rows.append([
                name, mode, f"{c['step_ms']:.4g}", f"{c['staleness']:.4g}", _size(c["bytes_per_step"]),
                _size(c["memory_bytes"]), _remark(c),
            ])  # fmt: skip
    return _aligned(rows, left={0, 1, 6})


def _remark(candidate: Mapping[str, Any]) -> str:
    words = ["chosen"] if candidate["chosen"] else []
    if candidate["margin_db"] is not None:
        words.append(f"{candidate['margin_db']:+.1f} dB to fewer steps")
    return "; ".join(words)


def _aligned(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _short(modules: str, parts: int = 4) -> str:
    """Module ranges with paths of at most so many parts."""
    words = (word if word in ("..", "+") else ".".join(word.split(".")[:parts]) for word in modules.split(" "))
    text = " ".join(words)
    return text if len(text) <= 76 else f"{text[:73]}..."


def _size(size_bytes: float) -> str:
    """Bytes in decimal units: '8.3 MB'."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} B"
