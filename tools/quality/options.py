"""The options of python -m tools.quality."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from partitioner.errors import UsageError
from profiles.quality_profile import SHIPPED
from runtime.cli_options import quality
from runtime.options import EngineOptions
from tools.pictures.pipelines import DENOISERS, HELD_OUT
from tools.quality.samplers import SCHEDULERS


def option_parser(description: str) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.quality", description=description)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--denoiser",
        choices=DENOISERS + HELD_OUT,
        help=f"a pipeline that the repository ships, in tools/trained; no choice of the engine was made on "
        f"{' and '.join(HELD_OUT)}, which are held out",
    )
    what.add_argument("--pipeline", metavar="FOLDER", help="a diffusers text-to-image pipeline of your own")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="for --pipeline; may be repeated")
    parser.add_argument(
        "--scheduler",
        default=None,
        metavar="LIST",
        help=f"samplers, with commas between: {', '.join(SCHEDULERS)} (default: the pipeline's own)",
    )
    parser.add_argument("--steps", default="50", metavar="LIST", help="numbers of denoising steps (default: 50)")
    parser.add_argument(
        "--ways",
        default="2,4",
        metavar="LIST",
        help="ways to run the engine, with commas between, each "
        "DEVICES[:BRANCHES[:chain|free[:lookahead|hold|linear|adaptive[:PERIOD]]]], such as 2,4:1:free:hold; what is "
        "left out the planner chooses (default: 2,4)",
    )
    parser.add_argument(
        "--warmup", type=int, metavar="N", help="exact first steps, counted in the speed-up (default: the plan's)"
    )
    parser.add_argument(
        "--guard",
        type=quality,
        default=EngineOptions.quality,
        metavar="Q",
        help="quality that look-ahead's guard holds pictures to: a PSNR in dB, indistinguishable, good or off "
        "(default: good)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        default=None,
        metavar="X",
        help="default: 3 with --denoiser, the pipeline's own with --pipeline",
    )
    parser.add_argument(
        "--two-calls",
        action="store_true",
        help="with --denoiser mmdit: guidance calls the denoiser twice at each timestep, not once with both halves",
    )
    parser.add_argument(
        "--samples", type=int, default=256, metavar="N", help="pictures per row (default: 256); Fréchet from 1000 on"
    )
    parser.add_argument(
        "--noise-floor",
        type=int,
        default=4,
        metavar="N",
        help="samples also made sequentially in float16 and bfloat16: how near they come to float32 is the noise floor "
        "printed beside every PSNR (default: 4; 0: not measured)",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        default=4,
        metavar="N",
        help="pictures per call of the pipeline, which are exact or not together (default: 4; 1 with --pipeline)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        metavar="N",
        help="CPU threads (default: torch's choice)",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="write up to 8 pictures of every row, each beside its difference from the sequential one, times 4",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write PSNR against speed-up (needs matplotlib)")
    parser.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="add the rows to a quality profile, which partition-model reads"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse what could only fail after something was measured.

    Raises:
        UsageError: a number is below 1, rows of a held-out denoiser would go to the shipped profile, or --plot is given
            and matplotlib is not installed.
    """
    for option in ("warmup", "samples", "chunk", "threads"):
        given = getattr(options, option)
        if given is not None and given < 1:
            raise UsageError(f"--{option} is {given}; expected 1 or more")
    if options.noise_floor < 0:
        raise UsageError(f"--noise-floor is {options.noise_floor}; expected 0 or more samples")
    if options.two_calls and options.denoiser is None:
        raise UsageError("--two-calls is for --denoiser mmdit; a pipeline of your own calls its denoiser as it does")
    if options.denoiser in HELD_OUT and options.calibrate and options.calibrate.resolve() == SHIPPED.resolve():
        raise UsageError(
            f"--calibrate {options.calibrate} is the shipped profile, which is to know nothing of {options.denoiser}: "
            "it is held out; expected another file"
        )
    if options.plot:
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError as error:
            raise UsageError("--plot needs matplotlib; install it: pip install matplotlib") from error
