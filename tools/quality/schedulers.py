"""Measures every scheduler class of diffusers: what the probe says of its sampler, and how close the engine comes.

    python -m tools.quality.schedulers --results schedulers.json --write docs/results/schedulers.md
    python -m tools.quality.schedulers --results some.json --schedulers DDIMScheduler --guidance 3 --steps 20

Each is run by the shipped denoiser that it suits: sequentially, by the engine with a look-ahead plan of two components,
by the same plan in async mode with ``hold``, and sequentially with as many fewer steps as take the time of the first.
What is in the results already is not measured again, so that a run that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from partitioner.errors import UsageError
from tools.command import command
from tools.pages import give_page
from tools.quality.scheduler_runs import Contestants, NotRun
from tools.quality.schedulers_table import document_page
from tools.trace_once import traced_once

DENOISERS = ("unet", "mmdit")  # the first that can run a scheduler does


def scheduler_names() -> list[str]:
    """The scheduler classes of diffusers."""
    import diffusers

    return [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]


def rows(options: argparse.Namespace, known: dict[str, Any], stack: ExitStack) -> Iterator[None]:
    """Measure what is not known yet, one case at a time, into ``known``. stack: ends the engines."""
    contestants: dict[str, Contestants] = {}
    have = {(row["scheduler"], row["guidance"], row["steps"]) for row in known["rows"]}
    for name in options.schedulers:
        wanted = [(g, n) for n in options.steps for g in options.guidance if (name, g, n) not in have]
        if not wanted or name in known["not_run"]:
            continue
        reasons = []
        for denoiser in DENOISERS:
            if denoiser not in contestants:
                contestants[denoiser] = Contestants(denoiser, options.samples, stack)
            try:
                scheduler = contestants[denoiser].scheduler(name)
            except NotRun as reason:
                reasons.append(str(reason))
                continue
            for guidance, steps in wanted:
                known["rows"].append(asdict(contestants[denoiser].row(scheduler, guidance, steps)))
                yield
            break
        else:
            known["not_run"][name] = "; ".join(reasons)
            yield


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m tools.quality.schedulers", description=__doc__.split("\n", 1)[0])
    made.add_argument("--results", type=Path, required=True, metavar="FILE", help="JSON; what it holds is kept")
    made.add_argument("--write", type=Path, metavar="FILE", help="write the results as a page of Markdown")
    made.add_argument(
        "--schedulers", type=lambda text: text.split(","), default=None, metavar="LIST", help="classes (default: all)"
    )
    made.add_argument("--guidance", type=_numbers, default=[1.0, 3.0, 5.0, 7.5], metavar="LIST", help="1,3,5,7.5")
    made.add_argument("--steps", type=_counts, default=[20, 50], metavar="LIST", help="20,50")
    made.add_argument("--samples", type=int, default=4, metavar="N", help="pictures per row (default: 4)")
    made.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    return made


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@command("tools.quality.schedulers")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when done, 2 for a wrong option."""
    options = parser().parse_args(argv)
    options.schedulers = options.schedulers or scheduler_names()
    unknown = set(options.schedulers) - set(scheduler_names())
    if unknown or options.samples < 1:
        what = f"--schedulers: diffusers has no {', '.join(sorted(unknown))}" if unknown else "--samples is below 1"
        raise UsageError(what)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    known: dict[str, Any] = {"rows": [], "not_run": {}}
    if options.results.exists():
        known = json.loads(options.results.read_text())
        if known["samples"] != options.samples:
            raise UsageError(f"{options.results} holds rows of {known['samples']} samples; give --samples so, too")
    known |= {
        "command": "python -m tools.quality.schedulers " + shlex.join(sys.argv[1:] if argv is None else argv),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"diffusers": importlib.metadata.version("diffusers")},
        "samples": options.samples,
    }
    with traced_once(plans=True), ExitStack() as stack:
        for _ in rows(options, known, stack):
            options.results.write_text(json.dumps(known, indent=1) + "\n")
            print(f"{time.perf_counter() - start:6.0f} s  {len(known['rows'])} rows", file=sys.stderr)
    page = document_page(known)
    give_page(page, options.write)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
