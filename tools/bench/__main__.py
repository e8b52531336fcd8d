"""Times a denoiser step (ms) of this engine, of the unmodified denoiser and of AsyncDiff's policy on this machine.

    python -m tools.bench [--denoiser sd15-like] [--microbatches 2] [--period 2] [--json]

Two ranks, one thread each. The plans, one for async mode and one for look-ahead, are made from costs that are measured
first. --period P adds a plan whose first component recomputes every P steps only, which is ideally 1 + P times as fast
as one device. Look-ahead needs a chain, and so has another split than async mode: what look-ahead itself costs is seen
beside async mode on look-ahead's split.

A round runs, one after the other:

    1  calls of the unmodified denoiser, one thread
    2  a trajectory of the engine in each mode
    3  a trajectory of AsyncDiff's policy
    4  exact calls of the engine
    5  calls of the unmodified denoiser, two threads

Every other round runs 5 to 1. A figure is the median over the rounds of the mean time of a call, warm-up calls
included; a step is a call after the warm-up. Other work on the machine spoils the figures: the spread over the rounds
is printed beside. The memory of the ranks of the async plan is measured afterwards, by tools.bench.rank_memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from partitioner.limits import whole
from partitioner.plan.predictor import PREDICTORS
from tools.bench.command import run, say
from tools.bench.results import bench
from tools.bench.settings import BenchSettings
from tools.bench.table import table
from tools.command import command
from tools.denoisers import DENOISERS, small_like
from tools.trace_once import traced_once


@command("tools.bench")
@traced_once(plans=True)  # one denoiser in many engines
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when done, 2 for a wrong option, 5 if a rank failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__.splitlines()[0])

    def add_count(name: str, default: int, text: str) -> None:
        parser.add_argument(name, type=whole(1), default=default, metavar="N", help=f"{text} (default: {default})")

    denoisers = {**DENOISERS, "small-like": small_like}
    parser.add_argument(
        "--denoiser",
        action="append",
        choices=tuple(denoisers),
        help="may be repeated (default: all but small-like, of some 20 ms a call, where messages weigh)",
    )
    add_count("--microbatches", 1, "parts of an exact call's batch")
    parser.add_argument(
        "--predictor",
        choices=PREDICTORS,
        help="of lagged boundary tensors (default: the planner's choice)",
    )
    add_count("--steps", 50, "of a trajectory")
    add_count("--warmup", 1, "exact first steps of a trajectory")
    add_count("--rounds", 5, "of measurements")
    add_count("--period", 1, "of a multi-rate plan; with 1 none is run")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="recorded costs, for one denoiser (default: measure them)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    options = parser.parse_args(arguments)
    settings = BenchSettings(**{each.name: getattr(options, each.name) for each in fields(BenchSettings)})
    return run(
        "tools.bench",
        lambda: [bench(name, denoisers[name](), settings, say) for name in options.denoiser or DENOISERS],
        table,
        as_json=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
