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

from partitioner.command import CommandParser, run_command
from partitioner.errors import PartitionerError, UsageError
from partitioner.limits import (
    DTYPES,
    LEAST_SECONDS,
    MOST_FRAMES,
    MOST_PIXELS,
    MOST_SCALE,
    MOST_SECONDS,
    MOST_STEPS,
    MOST_THREADS,
    SEEDS,
    real,
    text,
    whole,
)
from partitioner.plan.predictor import PREDICTORS
from partitioner.process import raise_interrupt_behind
from partitioner.writable import check_apart, check_writable
from runtime.errors import EngineError, InputError, OtherCalls, OtherDenoiser
from runtime.options import TRANSPORTS, EngineOptions, decibels
from runtime.output_file import IMAGE_SUFFIXES, VIDEO_SUFFIXES, check_output, write_media, written

if TYPE_CHECKING:  # what needs torch is imported where it is used, so that --help is quick
    from partitioner.plan.pipeline_plans import PipelinePlans
    from partitioner.plan.plan import Plan
    from runtime.engine import Engine
    from runtime.stats import Stats


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    made = CommandParser(
        prog="run-plan",
        description="Generate an image or a video with the denoiser split over several devices by a plan.",
    )
    made.add_argument("plan", metavar="PLAN", help="plan file made by partition-model")
    made.add_argument("--pipeline", required=True, metavar="FOLDER|HUB_ID|FILE", help="the diffusers pipeline")
    made.add_argument("--variant", default=None, metavar="NAME", help="of its weights' files, such as fp16")
    made.add_argument(
        "--config",
        default=None,
        metavar="FOLDER|HUB_ID",
        help="for a single file: a pipeline with its configuration; default: the published one that it is taken for",
    )
    made.add_argument("--prompt", type=text, default=None, metavar="TEXT", help="what to make")
    made.add_argument("--negative-prompt", type=text, default=None, metavar="TEXT", help="what to avoid")
    made.add_argument("--image", default=None, metavar="FILE", help="start image, for pipelines that take one (SVD)")
    made.add_argument("--seed", type=whole(*SEEDS), default=0, metavar="S", help="of the noise (default 0)")
    made.add_argument(
        "--steps", type=whole(1, MOST_STEPS), default=50, metavar="K", help="denoising steps (default 50)"
    )
    made.add_argument(
        "--guidance-scale", type=real(0, MOST_SCALE), default=None, metavar="G", help="default: the pipeline's own"
    )
    made.add_argument("--height", type=whole(1, MOST_PIXELS), default=None, help="default: the pipeline's own")
    made.add_argument("--width", type=whole(1, MOST_PIXELS), default=None, help="default: the pipeline's own")
    made.add_argument(
        "--frames", type=whole(1, MOST_FRAMES), default=None, help="frames of a video; default: the pipeline's own"
    )
    made.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help=f"image or video to write: {', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}",
    )
    made.add_argument("--force", action="store_true", help="overwrite the output file")
    made.add_argument("--exact", action="store_true", help="every step exact: the unmodified pipeline's result")
    made.add_argument(
        "--warmup",
        type=whole(1, MOST_STEPS),
        default=None,
        metavar="W",
        help="how many first steps are exact; default: the plan's",
    )
    made.add_argument(
        "--predictor",
        choices=PREDICTORS,
        default=None,
        help="in async steps, how values of earlier steps become an estimate of the present one; default: the plan's",
    )
    made.add_argument(
        "--quality",
        type=quality,
        default=EngineOptions.quality,
        metavar="Q",
        help="how near look-ahead comes to the sequential picture: a PSNR in dB, indistinguishable (40), good (26), "
        "or off; steps that would add too much of an error are run exactly (default good)",
    )
    made.add_argument("--devices", default=None, metavar="LIST", help="cpu,cpu or cuda:0,cuda:1; one per rank")
    made.add_argument(
        "--dtype",
        default=None,
        choices=DTYPES,
        help="default: float32 on a CPU, else the plan's",
    )
    made.add_argument(
        "--threads",
        type=whole(1, MOST_THREADS),
        default=1,
        metavar="T",
        help="torch threads per rank on a cpu (default 1)",
    )
    made.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default=None,
        help="what a rank is; emulation: all in one thread, in turn; default: processes, but threads on one GPU",
    )
    made.add_argument("--compile", action="store_true", help="compile each rank's segments with torch.compile")
    made.add_argument(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        help="replay each rank's segments from CUDA graphs; default: on GPUs, where they can be captured",
    )
    made.add_argument(
        "--green-contexts", action="store_true", help="ranks that share a GPU each get a share of its multiprocessors"
    )
    made.add_argument(
        "--offload",
        action="store_true",
        help="have text encoders and the autoencoder on rank 0's GPU only while they are used, one at a time",
    )
    made.add_argument("--check-finite", action="store_true", help="stop at the first NaN or Inf and name its node")
    made.add_argument(
        "--step-timeout",
        type=real(LEAST_SECONDS, MOST_SECONDS),
        default=300.0,
        metavar="SECONDS",
        help="how long a step may take (default 300)",
    )
    made.add_argument(
        "--startup-timeout",
        type=real(LEAST_SECONDS, MOST_SECONDS),
        default=120.0,
        metavar="SECONDS",
        help="how long the ranks may take to start (default 120)",
    )
    made.add_argument("--trace", default=None, metavar="FILE", help="write what every rank did, for ui.perfetto.dev")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None: those of the process.

    Returns:
        The exit code: 0 done, 1 not foreseen, 2 usage, 3 invalid plan, 5 a rank failed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command("run-plan", lambda: _result(parser().parse_args(arguments)), arguments)


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
    from runtime.parts import place_parts
    from runtime.pipeline import named_plans, parallelize

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


def quality(text: str) -> float | str:
    """What an option such as --quality says; argparse's error where it says none."""
    try:
        wanted: float | str = float(text)
    except ValueError:
        wanted = text
    try:
        decibels(wanted)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return wanted


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
