"""run-plan: the command that runs a saved plan on a diffusers pipeline and writes the image or the video."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partitioner.command import run_command
from partitioner.errors import PartitionerError, UsageError
from partitioner.process import raise_interrupt_behind
from partitioner.writable import check_apart, check_writable
from runtime.cli_options import run_parser
from runtime.errors import EngineError, OtherCalls, OtherDenoiser
from runtime.output_file import check_output, write_media, written

if TYPE_CHECKING:  # what needs torch is imported where it is used, so that --help is quick
    from partitioner.plan.pipeline_plans import PipelinePlans
    from partitioner.plan.plan import Plan
    from runtime.engine import Engine
    from runtime.stats import Stats


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None: those of the process.

    Returns:
        The exit code: 0 done, 1 not foreseen, 2 usage, 3 invalid plan, 5 a rank failed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command("run-plan", lambda: _result(run_parser().parse_args(arguments)), arguments)


def _result(options: argparse.Namespace) -> str:
    """What the command prints."""
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ and options.transport in (None, "processes"):
            from runtime.torchrun import join

            join(options.startup_timeout)
        result, stats = _run(options)
    except (EngineError, PartitionerError) as error:
        raise_interrupt_behind(error)
        if isinstance(error, (OtherDenoiser, OtherCalls)):
            raise type(error)(f"{error}{_command_for_another_plan(options)}") from error
        raise
    return json.dumps(result, indent=1) if options.json else _table(result, stats)


def _command_for_another_plan(options: argparse.Namespace) -> str:
    """The command that makes a plan that fits, as a sentence; nothing where the pipeline has no name for it."""
    model = options.config if Path(options.pipeline).is_file() else options.pipeline
    if model is None:
        return ""
    words = ["partition-model", "--model", model, "--devices", str(_load_plan(options).ranks)]
    for name in ("height", "width", "frames"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    return f". This makes one: {shlex.join(words)}"


def _load_plan(options: argparse.Namespace) -> Plan | PipelinePlans:
    from partitioner.plan.pipeline_plans import load_plans

    return load_plans(options.plan)


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], Stats]:
    """Run the plan as the options say; returns the result as ``--json`` prints it, and the figures behind it."""
    _check(options)
    plan = _load_plan(options)
    if options.image is not None and not os.path.isfile(options.image):
        raise UsageError(f"--image {options.image} is no file")

    import torch

    from partitioner.plan.pipeline_plans import PipelinePlans
    from runtime import generation
    from runtime.devices.names import device_names
    from runtime.devices.places import check_count
    from runtime.live_plans import named_plans
    from runtime.parts import place_parts
    from runtime.pipeline import parallelize

    devices = None
    if options.devices is not None:
        devices = device_names([name.strip() for name in options.devices.split(",")], "--devices")
        check_count(plan.plans.values() if isinstance(plan, PipelinePlans) else [plan], devices)
    torch.set_num_threads(options.threads)
    pipe = generation.load(options, getattr(torch, options.dtype or generation.default_dtype(plan, devices)))
    generation.warn_of_other_guidance(pipe, plan, options)
    if devices:
        place_parts(pipe, named_plans(pipe, plan, devices, {}, None), devices, offload=options.offload)
    overrides = {"transport": options.transport} if options.transport else {}
    with parallelize(
        pipe,
        plan,
        devices=devices,
        offload=options.offload,
        exact=options.exact,
        warmup=options.warmup,
        predictor=options.predictor,
        quality=options.quality,
        check_finite=options.check_finite,
        compile=options.compile,
        cuda_graphs=options.cuda_graphs,
        green_contexts=options.green_contexts,
        record=options.trace is not None,
        threads=options.threads,
        step_timeout_s=options.step_timeout,
        startup_timeout_s=options.startup_timeout,
        **overrides,
    ) as engine:
        print(f"run-plan: {plan.ranks} ranks ready", file=sys.stderr)
        start = time.perf_counter()
        media = generation.generate(pipe, options)
        seconds = time.perf_counter() - start
        write_media(media, Path(options.output))  # first of all
        print(f"run-plan: {written(media, Path(options.output))}", file=sys.stderr)
        stats = engine.stats
        if options.trace is not None:
            _write_trace(engine, options)
    result = {"output": options.output, "plan": options.plan, "ranks": plan.ranks, "seconds": seconds}
    return {**result, **_figures(stats)}, stats


def _check(options: argparse.Namespace) -> None:
    """UsageError for what is wrong with the options by themselves, before anything is loaded."""
    check_output(Path(options.output), options.force)
    if options.trace is not None:
        check_writable(Path(options.trace), "--trace", options.force)
        check_apart({"--output": Path(options.output), "--trace": Path(options.trace)})


def _figures(stats: Stats) -> dict[str, Any]:
    """The part of the result that says what was run, and how fast."""
    split = stats.lookahead_steps + stats.async_steps
    split_ms = stats.lookahead_steps * (stats.lookahead_ms or 0) + stats.async_steps * (stats.async_ms or 0)
    return {
        "mode": stats.mode,
        "steps": stats.steps,
        "exact_steps": stats.exact_steps,
        "lookahead_steps": stats.lookahead_steps,
        "async_steps": stats.async_steps,
        "exact_ms_per_step": stats.exact_ms,
        "lookahead_ms_per_step": stats.lookahead_ms,
        # as it always was: of all steps that are not exact, look-ahead's included
        "async_ms_per_step": split_ms / split if split else None,
        "exact_reasons": dict(stats.exact_reasons),
        "uncovered_calls": dict(stats.uncovered_calls),
        "foreseen_calls": stats.foreseen_calls,
        "wasted_calls": stats.wasted_calls,
        "per_rank": [
            {
                "rank": rank,
                "sent_bytes": report.sent_bytes,
                "wait_ms": report.wait_seconds * 1e3,
                "parameter_bytes": report.parameter_bytes,
                "resident_bytes": report.resident_bytes,
            }
            for rank, report in enumerate(stats.ranks)
        ],
    }


def _write_trace(engine: Engine, options: argparse.Namespace) -> None:
    """Write what every rank did, as a trace for ui.perfetto.dev."""
    from partitioner.plan.ranks import seat_of
    from partitioner.plan.timeline import chrome_trace, write_trace
    from profiles.json_files import JsonFileError

    plan = engine.plan  # where there are several: that of the first denoiser, which the names are of
    seats = [seat_of(rank, plan.components) for rank in range(plan.ranks)]
    names = [f"rank {rank}: branch {branch}, component {k}" for rank, (branch, k) in enumerate(seats)]
    try:
        write_trace(
            options.trace, chrome_trace(engine.timeline(), names, recorded="run-plan", plan=options.plan), options.force
        )
    except JsonFileError as error:
        raise UsageError(f"{options.output} was written, but {error}") from error


def _table(result: Mapping[str, Any], stats: Stats) -> str:
    from partitioner.tables import table_text

    lines = [f"wrote {result['output']} in {result['seconds']:.1f} s on {result['ranks']} ranks"]
    modes = (
        ("exact", stats.exact_steps, stats.exact_ms),
        ("look-ahead", stats.lookahead_steps, stats.lookahead_ms),
        ("async", stats.async_steps, stats.async_ms),
    )
    rows = [[name, str(steps), f"{ms:.1f}"] for name, steps, ms in modes if ms is not None]
    lines.append(table_text(["mode", "steps", "ms per step"], rows, left={0}))
    if stats.exact_reasons:
        lines.append(
            "exact because of: " + ", ".join(f"{reason} ({count})" for reason, count in stats.exact_reasons.items())
        )
    if stats.foreseen_calls or stats.wasted_calls:
        lines.append(f"begun with their step's first call: {stats.foreseen_calls}, and in vain {stats.wasted_calls}")
    for name, count in stats.uncovered_calls.items():
        lines.append(f"not by the plan: {count} calls of the second denoiser, {name}")
    rows = [
        [
            str(rank),
            f"{report.sent_bytes / 1e6:.2f}",
            f"{report.wait_seconds * 1e3:.1f}",
            f"{report.parameter_bytes / 1e6:.2f}",
            f"{report.resident_bytes / 1e6:.1f}",
        ]
        for rank, report in enumerate(stats.ranks)
    ]
    lines.append(table_text(["rank", "sent MB", "wait ms", "parameters MB", "resident MB"], rows))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
