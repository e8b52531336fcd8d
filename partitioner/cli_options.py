"""The options of partition-model and of its commands inspect and models."""

from __future__ import annotations

import argparse
from pathlib import Path

from partitioner._version import __version__
from partitioner.command import CommandParser
from partitioner.limits import (
    DTYPES,
    MOST_BATCH,
    MOST_BRANCHES,
    MOST_FRAMES,
    MOST_GB,
    MOST_PERIOD,
    MOST_PIXELS,
    MOST_SCALE,
    MOST_STEPS,
    real,
    whole,
)
from partitioner.models.guidance import GUIDANCE_STYLES
from partitioner.plan.predictor import PREDICTORS
from partitioner.search.mode import MODES

_EPILOG = """\
examples:
  partition-model --model svd --devices 4
  partition-model --model ./my-pipeline --devices h200,a100-80g --prefer speed --output my.plan.json
  partition-model --model sdxl --devices 2 --profile cuda:0 --save-profile sdxl.profile.json
  partition-model inspect svd-4.plan.json
  partition-model models

exit codes: 0 done, 1 not foreseen, 2 usage, 3 invalid plan, 4 no feasible split
"""


def plan_parser() -> argparse.ArgumentParser:
    """Of partition-model itself, which makes a plan."""
    parser = CommandParser(
        prog="partition-model",
        description="Split a diffusion model's denoiser over several devices and write the plan for it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--list-models", action="store_true", help="print the known names; the same as models")
    parser.add_argument("--model", required=True, metavar="NAME|FOLDER|HUB_ID", help="what to split")
    parser.add_argument(
        "--devices", required=True, metavar="N|LIST|FILE.json",
        help="how many, or names such as h200,a100-80g, or a file that describes them",
    )  # fmt: skip
    out = parser.add_argument_group("output")
    out.add_argument("--output", type=Path, metavar="FILE", help="plan file (default: MODEL-N.plan.json here)")
    out.add_argument(
        "--force", action="store_true", help="overwrite files, and write a plan even if it is slower than one device"
    )
    out.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    cost = parser.add_argument_group("cost")
    cost.add_argument(
        "--device", metavar="NAME", help="estimate for this device (default: the first of LIST, else h200)"
    )
    cost.add_argument(
        "--profile", metavar="cuda:0|cpu|FILE",
        help="measure on a device or use a saved profile (default: cuda:0 if there is one and no --device)",
    )  # fmt: skip
    cost.add_argument("--save-profile", type=Path, metavar="FILE", help="save what was measured")
    size = parser.add_argument_group("inputs (default: as the pipeline's)")
    size.add_argument(
        "--dtype",
        choices=DTYPES,
        metavar="NAME",
        help="float16, bfloat16 or float32 (default: float32 on a CPU, else the model's own)",
    )
    for name, most, text in (
        ("height", MOST_PIXELS, "of the images, in pixels"),
        ("width", MOST_PIXELS, "of the images, in pixels"),
        ("frames", MOST_FRAMES, "of the video"),
    ):
        size.add_argument(f"--{name}", type=whole(1, most), metavar="N", help=text)
    size.add_argument(
        "--batch", type=whole(1, MOST_BATCH), default=1, metavar="N", help="images or videos per call (default: 1)"
    )
    size.add_argument(
        "--steps", type=whole(1, MOST_STEPS), metavar="K", help="denoising steps of a run (default: the model's, or 50)"
    )
    size.add_argument(
        "--scheduler", metavar="CLASS", help="sampler of diffusers, such as DDIMScheduler (default: the model's)"
    )
    size.add_argument("--no-guidance", action="store_true", help="the pipeline runs without classifier-free guidance")
    size.add_argument(
        "--guidance-style", choices=GUIDANCE_STYLES, metavar="STYLE",
        help="how the pipeline does guidance: batch, two-calls, embedded or none (default: as is known of it)",
    )  # fmt: skip
    size.add_argument(
        "--guidance-scale", type=real(0, MOST_SCALE), metavar="X",
        help="what the pipeline is called with, which quality depends on (default: the pipeline's own)",
    )  # fmt: skip
    split = parser.add_argument_group("split")
    split.add_argument(
        "--branches", type=_branches, metavar="auto|N",
        help="how many parts of the work are computed apart, exactly: the calls of a step, the rows of a call",
    )  # fmt: skip
    split.add_argument("--mode", choices=MODES, help="how components overlap (default: the better)")
    split.add_argument(
        "--period",
        type=whole(1, MOST_PERIOD),
        default=1,
        metavar="P",
        help="all components but the last recompute every P steps",
    )
    split.add_argument(
        "--warmup",
        type=whole(1, MOST_STEPS),
        metavar="W",
        help="exact steps at the start (default: one per component, in async mode at least 4)",
    )
    split.add_argument(
        "--predictor", choices=PREDICTORS,
        help="how async mode estimates another component's current output from its earlier ones: the last one, "
        "extrapolated from the last two, or the same scaled down (default: what was measured to be best)",
    )  # fmt: skip
    split.add_argument(
        "--prefer", choices=("quality", "speed", "memory"), default="quality",
        help="likeness to the output of one device, the shortest step, or the least memory per device",
    )  # fmt: skip
    split.add_argument(
        "--quality",
        type=Path,
        metavar="FILE",
        help="quality profile that tools.quality made (default: the shipped one)",
    )
    split.add_argument(
        "--prove", action="store_true", help="prove how far the step time is from the least possible (needs HiGHS)"
    )
    split.add_argument(
        "--refine", action="store_true", help="measure whole components, rescale the costs of their nodes, solve again"
    )
    split.add_argument(
        "--memory-limit", type=real(1e-9, MOST_GB), metavar="GB", help="most memory to use of each device, in 1e9 bytes"
    )
    return parser


def inspect_parser() -> argparse.ArgumentParser:
    """Of partition-model inspect."""
    parser = CommandParser(
        prog="partition-model inspect", description="Check a plan file and show what it says.", allow_abbrev=False
    )
    parser.add_argument("plan", metavar="PLAN", help="plan file")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser


def models_parser() -> argparse.ArgumentParser:
    """Of partition-model models."""
    parser = CommandParser(
        prog="partition-model models",
        description="Print the names that --model takes, and what is known of the models.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser


def _branches(text: str) -> int | None:
    """None for "auto"."""
    return None if text == "auto" else whole(1, MOST_BRANCHES)(text)
