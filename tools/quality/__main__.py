"""Measures what a plan costs in quality: PSNR (dB), SSIM and more, beside fewer sequential steps in the same time.

    python -m tools.quality --denoiser unet --json
    python -m tools.quality --pipeline FOLDER --prompt "a lighthouse at dusk" --scheduler dpmpp --steps 25

Pictures are compared with the sequential output of the same seeds. Runs the engine's own code in one process
(emulation, which equals the ranks bit for bit). Every speed-up that the engine reaches has a row of the baseline beside
it: fewer sequential steps in the same time. Speed-ups are simulated: from the plan's predicted times of a step and of
an exact step, with the warm-up counted. Beside every PSNR stands the noise floor of float16 and bfloat16: how far the
sequential output in that dtype is from the one in float32, which is what all else is measured in.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from tools.command import command
from tools.pictures.grid import picture_grid
from tools.quality.calibration import calibrate
from tools.quality.edge_errors import measure_edge_errors
from tools.quality.engine_config import parse_config
from tools.quality.measured_pipeline import shipped_pipeline, users_pipeline
from tools.quality.metrics import metrics_for
from tools.quality.options import check, option_parser
from tools.quality.plot import plot
from tools.quality.runs import measure
from tools.quality.samplers import cases
from tools.quality.table import progress_line, table
from tools.trace_once import traced_once

SHOWN = 8  # pictures of each row in --picture


@traced_once(plans=True)  # one denoiser in many engines
def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every case, write the files that are asked for, and return the document that ``--json`` prints."""
    wanted, configs = cases(options.scheduler, options.steps), [parse_config(text) for text in options.ways.split(",")]
    check(options)
    torch.set_num_threads(options.threads)
    if options.denoiser:
        pipeline = shipped_pipeline(
            options.denoiser, options.samples, options.chunk, options.guidance_scale, two_calls=options.two_calls
        )
    else:
        pipeline = users_pipeline(options.pipeline, options.prompt, options.samples, options.guidance_scale)
    metrics = metrics_for(pipeline)
    rows, strips = [], []
    for case in wanted:
        start, reference = time.perf_counter(), None
        for row, pixels in measure(
            pipeline, case, configs, options.warmup, metrics, guard=options.guard, floor_samples=options.noise_floor
        ):
            print(f"{time.perf_counter() - start:6.0f} s  {progress_line(row)}", file=sys.stderr)
            rows.append(asdict(row))
            reference = pixels if reference is None else reference
            strips.append(torch.cat([pixels[:SHOWN], 4 * (pixels[:SHOWN] - reference[:SHOWN]).abs()], 3))
    if options.picture:
        picture_grid(torch.cat(strips) * 2 - 1, columns=min(SHOWN, len(pipeline.prompts))).save(options.picture)
    document = {
        "environment": {
            "date": time.strftime("%Y-%m-%d"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": importlib.metadata.version("diffusers"),
            "guidance_scale": pipeline.guidance_scale,
        },
        "command": options.command,
        "denoiser": pipeline.name,
        "rows": rows,
    }
    if options.plot:
        plot(document, options.plot)
    if options.calibrate:
        calibrate(options.calibrate, document, None if options.denoiser else measure_edge_errors(pipeline, wanted[0]))
    return document


@command("tools.quality")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when done, 2 for a wrong option or a file that cannot be read or written."""
    options = option_parser(__doc__.split("\n", 1)[0]).parse_args(argv)
    options.command = "python -m tools.quality " + shlex.join(sys.argv[1:] if argv is None else argv)
    document = run(options)
    print(json.dumps(document, indent=1) if options.json else table(document["rows"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
