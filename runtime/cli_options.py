"""The options of run-plan."""

from __future__ import annotations

import argparse

from partitioner.command import CommandParser
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
from runtime.errors import InputError
from runtime.options import TRANSPORTS, EngineOptions, decibels
from runtime.output_file import IMAGE_SUFFIXES, VIDEO_SUFFIXES


def run_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
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
