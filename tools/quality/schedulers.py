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
import inspect
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from partitioner.errors import PartitionerError, UsageError, first_line
from partitioner.models.sampler_probe import Sampler, probe
from partitioner.models.samplers import USUAL
from partitioner.plan.plan import Plan
from runtime.pipeline import parallelize
from runtime.stats import Stats
from tools.pictures.similarity import psnr
from tools.quality.engine_config import parse_config
from tools.quality.measured_pipeline import MeasuredPipeline, shipped_pipeline
from tools.quality.samplers import FLOW
from tools.quality.schedulers_table import document_page

WAY = parse_config("2:1:chain:lookahead")
WARMUP = 4


@dataclass(frozen=True)
class SchedulerRow:
    """One scheduler at one guidance scale and number of steps.

    Attributes:
        denoiser: of tools/trained.
        scheduler: class of diffusers.
        guidance, steps: of the pipeline's call.
        says: what the probe says of the sampler.
        lookahead_db: PSNR in dB against the sequential output, median over the samples, of the engine with a look-ahead
            plan, whatever mode it then ran in.
        hold_db: of the same plan in async mode, where every call reads what was sent at the call before.
        fewer_db: of fewer sequential steps in the time of the first.
        fewer_steps: how many.
        calls: how many calls the engine ran exactly, in look-ahead and async.
    """

    denoiser: str
    scheduler: str
    guidance: float
    steps: int
    says: str
    lookahead_db: float
    hold_db: float
    fewer_db: float
    fewer_steps: int
    calls: tuple[int, ...]


class NotRun(Exception):
    """Why a scheduler is not in the table."""


def scheduler_names() -> list[str]:
    """The scheduler classes of diffusers."""
    import diffusers

    return [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]


def suited(name: str, pipelines: dict[str, MeasuredPipeline]) -> tuple[str, Any]:
    """(denoiser, scheduler configured for it) of a class.

    Raises:
        NotRun: it cannot be built, or no shipped denoiser can run it.
    """
    import diffusers

    reasons = []
    for denoiser, pipeline in pipelines.items():
        flow = denoiser == "mmdit"
        try:
            kind = getattr(diffusers, name)
            taken = inspect.signature(kind.__init__).parameters
            own = {**USUAL, **pipeline.own_scheduler.config, **(FLOW if flow else {})}
            made = kind(**{key: value for key, value in own.items() if key in taken})
            pipeline.pipe.scheduler = made
            pictures = pipeline.generate(10, 1)
        except Exception as error:  # whatever a class raises that is for other pipelines
            reasons.append(f"{denoiser}: {first_line(error) or type(error).__name__}")
            continue
        sampler = probe(made)
        if sampler.meaning is not None and sampler.flow != flow:
            reasons.append(f"{denoiser}: its denoiser's output means something else")
        elif not bool(torch.isfinite(pictures).all()):
            reasons.append(f"{denoiser}: no finite picture")
        else:
            return denoiser, made
    raise NotRun("; ".join(reasons))


def saying(sampler: Sampler) -> str:
    """What the probe says, in words."""
    if sampler.refusal is not None:
        return sampler.refusal
    if sampler.second_share is not None:
        return f"two calls per step, the second's share is {sampler.second_share:g}"
    return (
        f"multistep, errors grow up to {sampler.gain:.1f}-fold in a step" if sampler.multistep else "one call per step"
    )


def measure(pipeline: MeasuredPipeline, scheduler: Any, guidance: float, steps: int) -> SchedulerRow:
    """The row of one case."""
    pipeline.arguments["guidance_scale"] = guidance
    pipeline.pipe.scheduler = scheduler
    reference = pipeline.generate(steps)
    calls = len(scheduler.timesteps)
    said = saying(probe(scheduler))
    plan, _ = pipeline.plan(WAY)

    def engine(mode: str) -> tuple[float, Stats]:
        with parallelize(
            pipeline.pipe, plan, transport="emulation", mode=mode, warmup=WARMUP, predictor="hold", keep_weights=True
        ) as running:
            pictures = pipeline.generate(steps)
            return _db(pictures, reference), running.stats

    ahead, stats = engine("lookahead")
    held, _ = engine("async")
    fewer = max(2, min(steps - 1, round(steps * _share_of_time(plan, stats))))
    return SchedulerRow(
        denoiser=pipeline.name,
        scheduler=type(scheduler).__name__,
        guidance=guidance,
        steps=steps,
        says=said,
        lookahead_db=ahead,
        hold_db=held,
        fewer_db=_db(pipeline.generate(fewer), reference),
        fewer_steps=fewer,
        calls=tuple(
            round(n * calls / stats.steps) for n in (stats.exact_steps, stats.lookahead_steps, stats.async_steps)
        ),
    )


def _share_of_time(plan: Plan, stats: Stats) -> float:
    """The time of the engine's calls over that of as many sequential ones, by the plan's predicted times."""
    figures = plan.predicted
    spent = stats.exact_steps * figures.exact_step_ms + (stats.steps - stats.exact_steps) * figures.step_ms
    return spent / (stats.steps * figures.sequential_ms)


def _db(pictures: torch.Tensor, reference: torch.Tensor) -> float:
    return round(float(psnr(pictures, reference).median()), 1)


def rows(options: argparse.Namespace, known: dict[str, Any]) -> Iterator[None]:
    """Measure what is not known yet, one case at a time, into ``known``."""
    pipelines = {name: shipped_pipeline(name, options.samples, options.samples, 3.0) for name in ("unet", "mmdit")}
    have = {(row["scheduler"], row["guidance"], row["steps"]) for row in known["rows"]}
    for name in options.schedulers:
        wanted = [(g, n) for n in options.steps for g in options.guidance if (name, g, n) not in have]
        if not wanted or name in known["not_run"]:
            continue
        try:
            denoiser, scheduler = suited(name, pipelines)
        except NotRun as reason:
            known["not_run"][name] = str(reason)
            yield
            continue
        for guidance, steps in wanted:
            known["rows"].append(asdict(measure(pipelines[denoiser], scheduler, guidance, steps)))
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when done, 2 for a wrong option."""
    options = parser().parse_args(argv)
    options.schedulers = options.schedulers or scheduler_names()
    unknown = set(options.schedulers) - set(scheduler_names())
    try:
        if unknown or options.samples < 1:
            what = f"--schedulers: diffusers has no {', '.join(sorted(unknown))}" if unknown else "--samples is below 1"
            raise UsageError(what)
        torch.set_num_threads(options.threads)
        start = time.perf_counter()
        known: dict[str, Any] = {"rows": [], "not_run": {}}
        if options.results.exists():
            known = json.loads(options.results.read_text())
        known |= {
            "command": "python -m tools.quality.schedulers " + shlex.join(sys.argv[1:] if argv is None else argv),
            "date": time.strftime("%Y-%m-%d"),
            "versions": {"python": platform.python_version(), "torch": torch.__version__}
            | {"diffusers": importlib.metadata.version("diffusers")},
            "samples": options.samples,
        }
        for _ in rows(options, known):
            options.results.write_text(json.dumps(known, indent=1) + "\n")
            print(f"{time.perf_counter() - start:6.0f} s  {len(known['rows'])} rows", file=sys.stderr)
    except PartitionerError as error:
        print(f"tools.quality.schedulers: {error}", file=sys.stderr)
        return error.exit_code
    page = document_page(known)
    if options.write:
        options.write.write_text(page)
    else:
        print(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
