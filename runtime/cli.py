"""run-plan: run a saved plan on a pipeline from the shell; writes the image or the video."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXIT_TERMINATED = 143
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
VIDEO_SUFFIXES = (".gif", ".mp4")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="run-plan",
        description="Generate an image or a video with the denoiser split over several devices by a plan.",
    )
    made.add_argument("plan", metavar="PLAN", help="plan file made by partition-model")
    made.add_argument("--pipeline", required=True, metavar="FOLDER|HUB_ID", help="the diffusers pipeline")
    made.add_argument("--prompt", default=None, metavar="TEXT")
    made.add_argument("--negative-prompt", default=None, metavar="TEXT")
    made.add_argument("--image", default=None, metavar="FILE", help="start image, for pipelines that take one (SVD)")
    made.add_argument("--seed", type=int, default=0, metavar="S")
    made.add_argument("--steps", type=int, default=50, metavar="K", help="denoising steps (default 50)")
    made.add_argument("--guidance-scale", type=float, default=None, metavar="G", help="default: the pipeline's own")
    made.add_argument("--height", type=int, default=None, help="default: the pipeline's own")
    made.add_argument("--width", type=int, default=None, help="default: the pipeline's own")
    made.add_argument("--frames", type=int, default=None, help="of a video; default: the pipeline's own")
    made.add_argument("--output", required=True, metavar="FILE", help=", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES))
    made.add_argument("--force", action="store_true", help="overwrite the output file")
    made.add_argument("--exact", action="store_true", help="every step exact: the unmodified pipeline's result")
    made.add_argument("--warmup", type=int, default=None, metavar="W", help="exact first steps; default: the plan's")
    made.add_argument("--predictor", choices=("hold", "linear", "adaptive"), default=None, help="default: the plan's")
    made.add_argument("--devices", default=None, metavar="LIST", help="cpu,cpu or cuda:0,cuda:1; one per rank")
    made.add_argument(
        "--dtype",
        default=None,
        choices=("float32", "float16", "bfloat16"),
        help="default: float32 on a CPU, else the plan's",
    )
    made.add_argument("--threads", type=int, default=1, metavar="T", help="torch threads per rank on a cpu (default 1)")
    made.add_argument("--transport", choices=("processes", "threads", "emulation"), default=None)
    made.add_argument("--compile", action="store_true", help="compile each rank's segments with torch.compile")
    made.add_argument("--cuda-graphs", action="store_true", help="replay each rank's segments from CUDA graphs")
    made.add_argument(
        "--green-contexts", action="store_true", help="ranks that share a GPU each get a share of its multiprocessors"
    )
    made.add_argument("--check-finite", action="store_true", help="stop at the first NaN or Inf and name its node")
    made.add_argument("--step-timeout", type=float, default=300.0, metavar="SECONDS", help="default 300")
    made.add_argument("--startup-timeout", type=float, default=120.0, metavar="SECONDS", help="default 120")
    made.add_argument("--trace", default=None, metavar="FILE", help="write what every rank did, for ui.perfetto.dev")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 usage, 3 invalid plan, 5 a rank failed)."""
    options = parser().parse_args(argv)
    previous = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, _terminated)
    from partitioner.errors import PartitionerError
    from partitioner.process import interrupted
    from runtime.errors import EngineError

    try:
        if "TORCHELASTIC_RUN_ID" in os.environ and options.transport in (None, "processes"):
            from runtime.torchrun import join

            join(options.startup_timeout)
        result = _run(options)
    except (EngineError, PartitionerError) as error:
        print(f"run-plan: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return interrupted("run-plan")
    except _Terminated:
        print("run-plan: terminated", file=sys.stderr)
        return EXIT_TERMINATED
    finally:
        signal.signal(signal.SIGTERM, previous)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        _print_table(result)
    return 0


class _Terminated(BaseException):
    """SIGTERM, so that everything is closed on the way out."""


def _terminated(_signal: int, _frame: Any) -> None:
    raise _Terminated


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from partitioner.errors import UsageError
    from partitioner.plan.plan import Plan

    output = Path(options.output)
    if output.suffix.lower() not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        raise UsageError(f"--output {output}: expected one of {', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}")
    if output.exists() and not options.force:
        raise UsageError(f"{output} exists; choose another --output or add --force")
    if not output.parent.is_dir():
        raise UsageError(f"the folder {output.parent} does not exist; make it or choose another --output")
    if options.trace is not None and Path(options.trace).exists() and not options.force:
        raise UsageError(f"{options.trace} exists; choose another --trace or add --force")
    for name in ("steps", "warmup", "threads", "height", "width", "frames"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; expected 1 or more")
    plan = Plan.load(options.plan)
    if options.image is not None and not Path(options.image).is_file():
        raise UsageError(f"--image {options.image} is no file")

    import torch

    from runtime.pipeline import parallelize

    torch.set_num_threads(options.threads)
    devices = _devices(options.devices, torch) if options.devices else None
    pipe = _load(options, getattr(torch, options.dtype or _default_dtype(plan, devices)))
    if devices:
        pipe.to(devices[0])
    overrides = {"transport": options.transport} if options.transport else {}
    with parallelize(
        pipe,
        plan,
        devices=devices,
        exact=options.exact,
        warmup=options.warmup,
        predictor=options.predictor,
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
        media = _generate(pipe, options, torch)
        seconds = time.perf_counter() - start
        stats = engine.stats
        if options.trace is not None:
            _write_trace(engine, plan, options)
    _write(media, output)
    return {
        "output": str(output),
        "plan": options.plan,
        "ranks": plan.ranks,
        "steps": stats.steps,
        "exact_steps": stats.exact_steps,
        "exact_ms_per_step": stats.exact_ms,
        "async_ms_per_step": stats.async_ms,
        "seconds": seconds,
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


def _write_trace(engine: Any, plan: Any, options: argparse.Namespace) -> None:
    from partitioner.errors import UsageError
    from partitioner.plan.ranks import seat_of
    from partitioner.plan.timeline import chrome_trace, write_trace
    from profiles.json_files import JsonFileError

    seats = [seat_of(rank, plan.components) for rank in range(plan.ranks)]
    names = [f"rank {rank}: branch {branch}, component {k}" for rank, (branch, k) in enumerate(seats)]
    try:
        write_trace(
            options.trace, chrome_trace(engine.timeline(), names, recorded="run-plan", plan=options.plan), options.force
        )
    except JsonFileError as error:
        raise UsageError(str(error)) from error


def _devices(text: str, torch: Any) -> list[str]:
    from partitioner.errors import UsageError, first_line

    devices = [name.strip() for name in text.split(",")]
    for name in devices:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise UsageError(
                f"--devices {text}: {name or 'an empty name'} cannot be used here ({first_line(error)})"
            ) from error
    return devices


def _default_dtype(plan: Any, devices: list[str] | None) -> str:
    """What pipelines are saved in says little: parts differ, and half precision is slow on a CPU."""
    on_cpu = devices is None or devices[0].startswith("cpu")
    return "float32" if on_cpu else next(item.dtype for item in plan.inputs if item.role == "latent")


def _load(options: argparse.Namespace, dtype: Any) -> Any:
    from partitioner.errors import UsageError, first_line
    from runtime.loading import load_pipeline

    local = Path(options.pipeline)
    if not local.exists() and options.pipeline.count("/") != 1:
        raise UsageError(f"--pipeline {options.pipeline} is neither a folder nor a hub id (owner/name)")
    if local.exists() and not (local / "model_index.json").is_file():
        raise UsageError(f"--pipeline {options.pipeline} has no model_index.json: expected a saved diffusers pipeline")
    try:
        return load_pipeline(options.pipeline, dtype)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"--pipeline {options.pipeline} cannot be loaded: {first_line(error)}") from error


def _generate(pipe: Any, options: argparse.Namespace, torch: Any) -> list[Any]:
    """Call the pipeline with those options that it takes; the images, or the frames of the first video."""
    import inspect

    from partitioner.errors import UsageError

    wanted = {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "height": options.height,
        "width": options.width,
        "num_frames": options.frames,
        "guidance_scale": options.guidance_scale,
    }
    if options.image is not None:
        from PIL import Image, UnidentifiedImageError

        try:
            wanted["image"] = Image.open(options.image).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise UsageError(f"--image {options.image} cannot be read as an image") from error
    given = {name: value for name, value in wanted.items() if value is not None}
    parameters = inspect.signature(pipe.__call__).parameters
    if "use_resolution_binning" in parameters:  # PixArt would run at another size than was asked and planned for
        given["use_resolution_binning"] = False
    if "guidance_scale" in given and "max_guidance_scale" in parameters:  # SVD ramps it over the frames
        given["max_guidance_scale"] = given.pop("guidance_scale")
    refused = [name for name in given if name not in parameters]
    needed = [
        name for name in ("prompt", "image") if name in parameters and name not in given
        and parameters[name].default is inspect.Parameter.empty
    ]  # fmt: skip
    if "prompt" in parameters and "image" not in parameters and "prompt" not in given:
        needed.append("prompt")
    for names, what in ((refused, "takes no"), (needed, "needs")):
        if names:
            named = ", ".join(
                "--" + name.replace("num_frames", "frames").replace("_", "-") for name in dict.fromkeys(names)
            )
            raise UsageError(f"a {type(pipe).__name__} {what} {named}")
    generator = torch.Generator("cpu").manual_seed(options.seed)
    try:
        result = pipe(**given, num_inference_steps=options.steps, generator=generator)
    except ValueError as error:  # as pipelines refuse their arguments
        raise UsageError(f"the {type(pipe).__name__} refuses this call: {error}") from error
    return list(result.frames[0] if hasattr(result, "frames") else result.images)


def _write(media: list[Any], output: Path) -> None:
    """One image as it is; frames as a video; frames as an image file: the first."""
    from partitioner.errors import UsageError

    if output.suffix.lower() == ".gif":
        media[0].save(output, save_all=True, append_images=media[1:], duration=125, loop=0)
    elif output.suffix.lower() == ".mp4":
        from diffusers.utils import export_to_video

        try:
            export_to_video(media, str(output), fps=8)
        except ImportError as error:
            raise UsageError(f"writing .mp4 needs another package ({error}); --output as .gif needs none") from error
    else:
        media[0].save(output)


def _print_table(result: dict[str, Any]) -> None:
    def ms(value: float | None) -> str:
        return f"{value:.1f} ms" if value is not None else "none"

    lagged = result["steps"] - result["exact_steps"]
    print(f"wrote {result['output']} in {result['seconds']:.1f} s on {result['ranks']} ranks")
    print(f"exact steps  {result['exact_steps']:4d}  {ms(result['exact_ms_per_step'])} per step")
    print(f"async steps  {lagged:4d}  {ms(result['async_ms_per_step'])} per step")
    print("rank    sent MB   wait ms   parameters MB   resident MB")
    for row in result["per_rank"]:
        print(
            f"{row['rank']:4d} {row['sent_bytes'] / 1e6:10.2f} {row['wait_ms']:9.1f} "
            f"{row['parameter_bytes'] / 1e6:15.2f} {row['resident_bytes'] / 1e6:13.1f}"
        )


if __name__ == "__main__":
    sys.exit(main())
