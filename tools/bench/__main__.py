"""bench: a step of this engine, of the unmodified denoiser and of AsyncDiff's policy, by turns on this machine.

python -m tools.bench [--denoiser sd15-like] [--microbatches 2] [--period 2] [--json]

Two ranks, one thread each. The plans, for async and for look-ahead, are made from costs that are measured first; with
--period P, also one in which the first component recomputes every P steps only, ideally 1 + P times as fast. What
look-ahead itself costs is seen beside async mode on look-ahead's own split, for its split is a chain. Each round runs,
one after the other, calls of the unmodified denoiser with one thread and with two, a trajectory of the engine in each
mode, exact calls of the engine, and a trajectory of AsyncDiff's policy (asyncdiff_policy). A figure is the median
over the rounds of the mean time of a call, warm-up calls included; a step is a call after the warm-up. Other work on
the machine spoils it: the spread is printed beside. The memory of the ranks of the async plan is measured afterwards,
by tools.bench.rank_memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch

from partitioner.errors import PartitionerError
from partitioner.plan.fields import PredictorName
from runtime.errors import EngineError
from tools.bench.results import bench
from tools.bench.settings import BenchSettings
from tools.bench.table import table
from tools.denoisers import DENOISERS


def environment() -> dict[str, Any]:
    """Where this ran."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "command": " ".join([Path(sys.executable).name, "-m", "tools.bench", *sys.argv[1:]]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 for a wrong option; 5 if a rank failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--denoiser", action="append", choices=tuple(DENOISERS), help="may be repeated (default: all)")
    parser.add_argument("--microbatches", type=_positive, default=1, help="of the exact calls (default: 1)")
    parser.add_argument("--predictor", choices=get_args(PredictorName), help="default: the planner's choice")
    parser.add_argument("--steps", type=_positive, default=50, help="of a trajectory (default: 50)")
    parser.add_argument("--warmup", type=_positive, default=1, help="exact steps of them (default: 1)")
    parser.add_argument("--rounds", type=_positive, default=5, help="default: 5")
    parser.add_argument("--period", type=_positive, default=1, help="of a multi-rate plan (default: 1, none)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="costs; for one denoiser (default: measured)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    settings = BenchSettings(**{each.name: getattr(options, each.name) for each in fields(BenchSettings)})
    try:
        results = [
            bench(name, DENOISERS[name](), settings, lambda text: print(text, file=sys.stderr, flush=True))
            for name in options.denoiser or DENOISERS
        ]
    except PartitionerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (EngineError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 5
    document = {"environment": environment(), "results": results}
    print(json.dumps(document, indent=1) if options.json else table(document))
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
