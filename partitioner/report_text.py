"""report_text: the document of partitioner.report as text for people."""

from __future__ import annotations

from itertools import groupby

from partitioner.branch_text import Document, branches_text, weights_text
from partitioner.quality_text import idle_text, quality_text, trajectory_text
from partitioner.simulator.speed_of_light import SpeedOfLight
from partitioner.tables import size_text, table_text

_STYLES = {
    "batch": "both halves in one call",
    "two-calls": "a call for each half",
    "embedded": "the scale is an input",
    "none": "one call a step",
}
_MODES = {"lookahead": "look-ahead", "async": "async"}


def report_text(document: Document) -> str:
    """Headings, one line per figure, and tables of components, baselines and candidates.

    Args:
        document: Of ``describe``, and of ``describe_search`` as well where the plan has just been made; or of
            ``describe_several``.

    Returns:
        Lines without a newline at the end. Figures that a data sheet gave, not a clock, are called estimates.
    """
    if "denoisers" in document:
        parts = [f"{name}\n{'-' * len(name)}\n{report_text(one)}\n" for name, one in document["denoisers"].items()]
        return "\n".join([*parts, f"plans            {document['plan']}"])
    estimate = document["cost_source"].startswith("roofline")
    ms, remark = ("ms (estimate)", ", an estimate") if estimate else ("ms", "")
    lines = [
        _what_runs(document),
        f"costs: {_cost_source(document)}",
        *_guidance(document),
        *branches_text(document),
        *_beside(document),
        "",
        _component_table(document, ms),
        *weights_text(document),
        *_memory_text(document),
        "",
        f"predicted step   {document['step_ms']:.4g} {ms}, sequential {document['sequential_ms']:.4g} {ms}: "
        f"speed-up {document['speedup_step']:.2f} x",
        *trajectory_text(document, remark),
        *_speed_of_light(document, remark),
        f"lower bound      {document['lower_bound_ms']:.4g} {ms}; slowest component {document['gap']:.2%} above it",
        f"sent             {size_text(document['bytes_per_step'])} per step; staleness {document['staleness']:.4g}",
        f"denoiser         {document['macs'] / 1e12:.4g} T multiply-accumulates per call",
        *quality_text(document),
        *idle_text(document),
        *_proof(document, ms),
        *_refinement(document),
    ]
    if document.get("baselines"):
        lines += ["", _baseline_table(document, ms)]
    if document.get("candidates"):
        lines += ["", _candidate_table(document, ms)]
    if document.get("seconds"):
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in document["seconds"].items())
        lines += ["", f"seconds          {seconds}"]
    if document["plan"]:
        lines += ["", f"plan             {document['plan']}"]
    return "\n".join(lines)


def _what_runs(document: Document) -> str:
    devices = ", ".join(f"{len(list(same))} x {name}" for name, same in groupby(document["devices"]))
    branches, components = document["branches"], document["components_per_branch"]
    shape = f"{branches} branch{'es' if branches > 1 else ''} x {components} component{'s' if components > 1 else ''}"
    period = f", period {document['period']}" if document["period"] > 1 else ""
    parts = f", exact steps in {document['microbatches']} micro-batches" if document["microbatches"] > 1 else ""
    return (
        f"{document['model']} ({document['class_name']}) on {devices}: {shape}, {_mode(document, components)}{period}, "
        f"warm-up {document['warmup']}{parts}, predictor {document['predictor']}"
    )


def _guidance(document: Document) -> list[str]:
    style = document["guidance_style"]
    scale = document["guidance_scale"]
    figures = f"; quality judged at a guidance scale of {scale:g}" if scale is not None and style != "none" else ""
    return [] if style is None else [f"guidance: {style}, {_STYLES[style]}{figures}"]


def _beside(document: Document) -> list[str]:
    modules = document["driver_modules"]
    if not modules:
        return []
    shown = ", ".join(
        f"{m['name']} ({m['class_name']}, {m['parameters'] / 1e6:.1f} M parameters, {size_text(m['parameter_bytes'])})"
        for m in modules
    )
    return [
        f"at each step the pipeline also calls {shown}:",
        "whole, on the driver's device (rank 0); neither time nor memory of that is in the figures below",
    ]


def _mode(owner: Document, components: int) -> str:
    """One component has nothing to read from another, whatever its mode is called."""
    return "exact" if components == 1 else _MODES[owner["mode"]]


def _cost_source(document: Document) -> str:
    kind, _, device = document["cost_source"].partition(" ")
    if kind == "roofline":
        return f"roofline estimate for {device}; nothing was measured"
    rest = "" if document["cost_covered"] > 0.9995 else "; the rest by a roofline calibrated on that"
    return f"measured on {device} ({document['cost_covered']:.1%} of the time{rest})"


def _speed_of_light(document: Document, remark: str) -> list[str]:
    light = SpeedOfLight(**document["speed_of_light"])
    lines = [f"speed of light   {light}{remark}"]
    if light.balanced > light.ideal and document["branches"] > 1:
        lines.append(
            "                 above the ideal: a part of a call's rows takes less than its part of the call's time"
        )
    return lines


def _proof(document: Document, ms: str) -> list[str]:
    proof = document.get("proof")
    if not proof:
        return []
    return [
        f"proof            {proof['result']}: no placement of {proof['clusters']} clusters takes less than "
        f"{proof['bound_ms']:.4g} {ms}"
    ]


def _refinement(document: Document) -> list[str]:
    rounds = document.get("refinement")
    if not rounds:
        return []
    errors = ", ".join(f"{entry['error']:.1%}" for entry in rounds)
    slowest = ", ".join(f"{entry['slowest_over_mean'] - 1:.1%}" for entry in rounds)
    best = next(number for number, entry in enumerate(rounds, start=1) if entry["best"])
    return [
        f"refinement       whole components differed from the sum of their nodes by up to {errors}",
        f"                 the slowest was {slowest} above the mean; taken: round {best} of {len(rounds)}",
    ]


def _component_table(document: Document, ms: str) -> str:
    total = sum(component["compute_ms"] for component in document["components"]) or 1.0
    headers = ["rank", "branch", "component", "device", "modules", ms, "share", "parameters", "memory", "in", "out"]
    rows = [
        [
            str(c["rank"]), str(c["branch"]), str(c["component"]), c["device"], _short(c["modules"]),
            f"{c['compute_ms']:.4g}", f"{c['compute_ms'] / total:.1%}", f"{c['parameters'] / 1e6:.1f} M",
            size_text(c["memory_bytes"]), size_text(c["receive_bytes"]), size_text(c["send_bytes"]),
        ]
        for c in document["components"]
    ]  # fmt: skip
    return table_text(headers, rows, left={3, 4})


def _memory_text(document: Document) -> list[str]:
    """What of the memory is for messages, and what CUDA graphs take besides; nothing of what earlier releases made."""
    components = document["components"]
    if any(c["graph_bytes"] is None for c in components):
        return []
    messages, graphs = (max(c[name] for c in components) for name in ("message_bytes", "graph_bytes"))
    return [
        f"memory: up to {size_text(messages)} of it for messages; CUDA graphs take up to {size_text(graphs)} beside it"
    ]


def _baseline_table(document: Document, ms: str) -> str:
    rows = []
    for name, figures in document["baselines"].items():
        sent = size_text(figures["bytes_per_step"])
        if "broadcast_bytes_per_step" in figures:
            sent += f" (its code broadcasts {size_text(figures['broadcast_bytes_per_step'])})"
        rows.append([name.replace("_", " "), f"{figures['step_ms']:.4g}", sent, f"{figures['staleness']:.4g}"])
    return table_text(["compared with", f"step {ms}", "sent per step", "staleness"], rows, left={0, 2})


def _candidate_table(document: Document, ms: str) -> str:
    headers = ["considered", "mode", f"step {ms}", "staleness", "sent per step", "largest memory", ""]
    rows = []
    for c in document["candidates"]:
        name = f"{c['branches']} x {c['components']}" + (f", period {c['period']}" if c["period"] > 1 else "")
        name += _sharing(c)
        figures = ["-", "-", "-", "-", c["reason"]]
        if not c["reason"]:
            figures = [
                f"{c['step_ms']:.4g}", f"{c['staleness']:.4g}", size_text(c["bytes_per_step"]),
                size_text(c["memory_bytes"]), _remark(c),
            ]  # fmt: skip
        rows.append([name, _mode(c, c["components"]), *figures])
    return table_text(headers, rows, left={0, 1, 6})


def _sharing(candidate: Document) -> str:
    """How branches share a step, where their number alone does not say it."""
    rows, streams = candidate["branch_rows"], candidate["streams"]
    words = [f"{streams} streams"] if streams > 1 else []
    if len(set(rows)) > 1:
        words.append(f"rows {' + '.join(map(str, rows))}")
    return f", {', '.join(words)}" if words else ""


def _remark(candidate: Document) -> str:
    words = ["chosen"] if candidate["chosen"] else []
    margin = candidate["nearest_margin_db"]
    if margin is not None:
        where = "" if candidate["margin_db"] is not None else ", in the nearest case that was measured"
        words.append(f"{margin:+.1f} dB against fewer steps{where}")
    if candidate["passed_over"] in ("not measured", "no faster"):
        words.append(candidate["passed_over"])
    return "; ".join(words)


def _short(modules: str, parts: int = 4) -> str:
    """Module ranges with paths of at most so many parts."""
    words = (word if word in ("..", "+") else ".".join(word.split(".")[:parts]) for word in modules.split(" "))
    text = " ".join(words)
    return text if len(text) <= 76 else f"{text[:73]}..."
