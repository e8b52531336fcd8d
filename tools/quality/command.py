"""The options of the command, and a run of everything that they ask for."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from partitioner.errors import UsageError
from tools.pictures.grid import picture_grid
from tools.pictures.pipelines import DENOISERS
from tools.quality.calibration import calibrate
from tools.quality.drift import measure_drift
from tools.quality.engine_config import parse_way
from tools.quality.measured_pipeline import loaded, shipped
from tools.quality.plot import plot
from tools.quality.rows import judges
from tools.quality.runs import measure
from tools.quality.samplers import SCHEDULERS, cases
from tools.quality.table import row_line


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(prog="python -m tools.quality", description=__doc__.split("\n", 1)[0])
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--denoiser", choices=DENOISERS, help="one of those that the repository ships")
    what.add_argument("--pipeline", metavar="FOLDER", help="a diffusers text-to-image pipeline of your own")
    made.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="for --pipeline; may be repeated")
    made.add_argument("--scheduler", default=None, metavar="LIST", help=f"of {', '.join(SCHEDULERS)}; default: own")
    made.add_argument("--steps", default="50", metavar="LIST", help="denoising steps (default 50)")
    made.add_argument(
        "--ways",
        default="2,4",
        metavar="LIST",
        help="DEVICES[:BRANCHES[:chain|free[:lookahead|hold|linear|adaptive[:PERIOD]]]], such as 2,4:1:free:hold; "
        "what is left out the planner chooses (default 2,4)",
    )
    made.add_argument("--warmup", type=int, default=4, help="exact first steps, counted in the speed-up (default 4)")
    made.add_argument("--guidance-scale", type=float, default=None, help="default 3 for the shipped ones, else own")
    made.add_argument("--samples", type=int, default=256, help="default 256; Fréchet distance from 1000 on")
    made.add_argument("--chunk", type=int, default=64, help="samples per call (default 64; one for --pipeline)")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--picture", type=Path, metavar="FILE", help="sequential, each way and its difference, enlarged")
    made.add_argument("--plot", type=Path, metavar="FILE", help="quality against speed (needs matplotlib)")
    made.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="add the rows to a quality profile, which partition-model reads"
    )
    made.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return made


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rows; writes the picture and the plot if asked for."""
    wanted, ways = cases(options.scheduler, options.steps), [parse_way(text) for text in options.ways.split(",")]
    for option in ("warmup", "samples", "chunk", "threads"):
        if getattr(options, option) < 1:
            raise UsageError(f"--{option} is {getattr(options, option)}; expected 1 or more")
    if options.plot:
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError as error:
            raise UsageError("--plot needs matplotlib; install it: pip install matplotlib") from error
    torch.set_num_threads(options.threads)
    if options.denoiser:
        subject = shipped(options.denoiser, options.samples, options.chunk, options.guidance_scale)
    else:
        subject = loaded(options.pipeline, options.prompt, options.samples, options.guidance_scale)
    more, rows, strips = judges(subject), [], []
    for case in wanted:
        start, reference = time.perf_counter(), None
        for row, pixels in measure(subject, case, ways, options.warmup, **more):
            print(f"{time.perf_counter() - start:6.0f} s  {row_line(asdict(row))}", file=sys.stderr)
            rows.append(asdict(row))
            reference = pixels if reference is None else reference
            strips.append(torch.cat([pixels[:8], 4 * (pixels[:8] - reference[:8]).abs()], 3))
    if options.picture:
        picture_grid(torch.cat(strips) * 2 - 1, columns=min(8, len(subject.prompts))).save(options.picture)
    document = {
        "environment": {
            "date": time.strftime("%Y-%m-%d"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": importlib.metadata.version("diffusers"),
            "guidance_scale": subject.arguments.get("guidance_scale"),
        },
        "command": options.command,
        "denoiser": subject.name,
        "rows": rows,
    }
    if options.plot:
        plot(document, options.plot)
    if options.calibrate:
        drift = None if options.denoiser else measure_drift(subject, wanted[0])
        calibrate(options.calibrate, document, drift)
    return document
