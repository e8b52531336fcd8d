"""try_pipeline: whether a pipeline from a folder runs on two devices: exactly, async and with look-ahead."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from partitioner.planning.options import PlanOptions
from runtime import parallelize
from runtime.pipeline import plans_for
from tools.support.tiny_pipeline import TinyPipeline
from tools.support.tries import first_line, is_finite, largest_difference
from tools.trace_once import traced_once

_DENOISERS = ("unet", "transformer", "prior", "decoder")


@dataclass(frozen=True)
class TriedPipeline:
    """How far a pipeline came.

    Attributes:
        denoiser: The classes of what is planned of it, or was to be; empty where it was not made.
        failed: The step that failed; None where all went well.
        why: The error's first line.
        difference: The largest between an exact call and that of the unmodified pipeline.
        repeats: Whether two async calls with the same seed are equal.
        looks_ahead: Whether a call with look-ahead ran, and made finite numbers.
        moves: The largest difference between an async call and that of the unmodified pipeline: not zero, or nothing
            was async.
    """

    denoiser: str = ""
    failed: str | None = None
    why: str = ""
    difference: float | None = None
    repeats: bool | None = None
    looks_ahead: bool | None = None
    moves: float | None = None


def try_pipeline(tiny: TinyPipeline, folder: Path) -> TriedPipeline:
    """Save a pipeline, load it, and run its call by a plan of two components in each of the modes.

    Args:
        tiny: The pipeline.
        folder: Where it is saved.
    """
    with traced_once(plans=True):
        return _try(tiny, folder)


def _try(tiny: TinyPipeline, folder: Path) -> TriedPipeline:
    found, step = TriedPipeline(), "make"
    try:
        saved = tiny.save(folder)
        step = "load"
        pipe = tiny.load(saved)
        step = "call"
        wanted = tiny.run(pipe)
        if largest_difference(tiny.run(pipe), wanted) != 0:
            raise ValueError("two calls of the unmodified pipeline differ")
        name = next(name for name in _DENOISERS if getattr(pipe, name, None) is not None)
        found = replace(found, denoiser=type(getattr(pipe, name)).__name__)
        step = "plan"
        options = PlanOptions(branches=1, force=True)
        plan = plans_for(pipe, 2, tiny.sizes(), options, call=tiny.arguments())
        classes = dict.fromkeys(type(getattr(pipe, name)).__name__ for name in plan)
        found = replace(found, denoiser=" and ".join(classes))
        step = "run exactly"
        with parallelize(pipe, plan, transport="emulation", exact=True):
            found = replace(found, difference=largest_difference(tiny.run(pipe), wanted))
        step = "run async"
        with parallelize(pipe, plan, transport="emulation", mode="async", warmup=1):
            one, other = tiny.run(pipe), tiny.run(pipe)
        found = replace(found, repeats=largest_difference(one, other) == 0, moves=largest_difference(one, wanted))
        step = "look ahead"
        with parallelize(pipe, plan, transport="emulation", mode="lookahead", warmup=1):
            found = replace(found, looks_ahead=is_finite(tiny.run(pipe)))
    except Exception as error:
        return replace(found, failed=step, why=first_line(error))
    return found


def is_supported(tried: TriedPipeline, tolerance: float = 1e-4) -> bool:
    """Whether it is exact, repeatable and looks ahead."""
    exact = tried.difference is not None and tried.difference <= tolerance
    return tried.failed is None and exact and bool(tried.repeats) and bool(tried.looks_ahead)
