"""Makes the matrix of features and pipelines: what is equal to the unmodified pipeline, and what is refused.

    python -m tools.features [--only lora] [--pipelines Flux StableDiffusion3] [--jobs 2]
                             [--transport processes] [--json]

Each feature is done to two equal small pipelines with random weights, one of them unmodified, one run exactly by an
engine with a plan for two devices, and the results of their calls are compared bit by bit. Fails (1) if any cell
differs, crashes or proves nothing. Without --only and --pipelines it writes docs/results/features.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runtime.options import TRANSPORTS
from tools.command import command
from tools.features.cell import WRONG
from tools.features.matrix import chosen, run_matrix
from tools.features.subject import PIPELINES
from tools.features.table import counts, page
from tools.pages import environment

PAGE = Path("docs/results/features.md")


@command("tools.features")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when no cell is wrong, 1 when one is, 2 for a wrong option."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m tools.features", description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="TEXT", help="only rows that contain this, in any case, as a pattern")
    parser.add_argument("--pipelines", nargs="+", choices=list(PIPELINES), default=list(PIPELINES), metavar="NAME")
    parser.add_argument("--transport", choices=TRANSPORTS, default="emulation", help="what the engine's ranks are")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many pipelines at once; default: 1")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help=f"write the page there; default: {PAGE}, if all is run"
    )
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")
    options = parser.parse_args(arguments)
    if not chosen(options.only or ""):
        parser.error(f"no row contains {options.only!r}")
    began = time.monotonic()
    cells = run_matrix(options.only or "", options.pipelines, options.transport, options.jobs)
    made = environment("tools.features", arguments) | {"time": f"{(time.monotonic() - began) / 60:.0f} minutes"}
    text = page(cells, options.pipelines, made)
    complete = options.only is None and options.pipelines == list(PIPELINES)
    target = options.page or (PAGE if complete else None)
    if target is not None:
        target.write_text(text)
    if options.json:
        rows = {row: {name: cell.as_json() for name, cell in found.items()} for row, found in cells.items()}
        print(json.dumps({"environment": made, "cells": rows}, indent=1))
    else:
        print(text)
    return int(any(counts(cells)[verdict] for verdict in WRONG))


if __name__ == "__main__":
    sys.exit(main())
