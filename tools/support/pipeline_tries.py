"""try_pipeline: whether a pipeline from a folder runs on two devices: exactly, async and with look-ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from partitioner.errors import UsageError
from partitioner.plan.plan import Plan
from partitioner.planning.options import PlanOptions
from runtime import parallelize
from runtime.driver.generations import MEANT
from runtime.live_plans import plans_for
from tools.support.step_calls import step_calls
from tools.support.tiny_pipeline import TinyPipeline
from tools.support.tries import first_line, is_finite, largest_difference
from tools.trace_once import traced_once

_DENOISERS = ("unet", "transformer", "prior", "decoder")
_WARMUP = 1  # calls of each stream


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
        calls: How often the unmodified pipeline calls its denoisers.
        calls_per_step: How often at one timestep, of the denoiser of which that is most.
        could_be_lagged: Of an async run, the calls but for the warm-up of each stream.
        lagged: How many of them were.
        exact: Why others were exact: reasons that are not meant, and how many calls had them.
        could_be_foreseen: Of an exact run by a plan of a branch for each call of a step, the calls that are neither of
            the first step nor the first of theirs. None where a step has one call.
        foreseen: How many of them were.
        wasted: How many calls were foreseen and then not made so.
        branches_differ: The largest difference between that run and that of the unmodified pipeline.
        no_streams: Why such a plan has no branches for calls of a step, if so.
    """

    denoiser: str = ""
    failed: str | None = None
    why: str = ""
    difference: float | None = None
    repeats: bool | None = None
    looks_ahead: bool | None = None
    moves: float | None = None
    calls: int | None = None
    calls_per_step: int | None = None
    could_be_lagged: int | None = None
    lagged: int | None = None
    exact: Mapping[str, int] = field(default_factory=dict)
    could_be_foreseen: int | None = None
    foreseen: int | None = None
    wasted: int | None = None
    branches_differ: float | None = None
    no_streams: str = ""


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
        found = _with_calls(replace(found, denoiser=" and ".join(classes)), tiny, pipe, plan)
        step = "run exactly"
        with parallelize(pipe, plan, transport="emulation", exact=True):
            found = replace(found, difference=largest_difference(tiny.run(pipe), wanted))
        step = "run async"
        with parallelize(pipe, plan, transport="emulation", mode="async", warmup=_WARMUP) as engine:
            one, stats, other = tiny.run(pipe), engine.stats, tiny.run(pipe)
        exact = {reason: count for reason, count in stats.exact_reasons.items() if reason not in MEANT}
        found = replace(found, repeats=largest_difference(one, other) == 0, moves=largest_difference(one, wanted))
        found = replace(found, lagged=stats.async_steps, exact=exact)
        step = "look ahead"
        with parallelize(pipe, plan, transport="emulation", mode="lookahead", warmup=_WARMUP):
            found = replace(found, looks_ahead=is_finite(tiny.run(pipe)))
        step = "foresee calls"
        if (found.calls_per_step or 1) > 1:
            found = _with_branches(found, tiny, pipe, wanted)
    except Exception as error:
        return replace(found, failed=step, why=first_line(error))
    return found


def _with_calls(found: TriedPipeline, tiny: TinyPipeline, pipe: Any, plans: Mapping[str, Plan]) -> TriedPipeline:
    """What was found, and what calls the unmodified pipeline makes."""
    with step_calls(pipe, plans) as made:
        tiny.run(pipe)
    return replace(
        found,
        calls=made.total,
        calls_per_step=made.per_step,
        could_be_lagged=made.could_be_lagged(_WARMUP),
        could_be_foreseen=made.could_be_foreseen() if made.per_step > 1 else None,
    )


def _with_branches(found: TriedPipeline, tiny: TinyPipeline, pipe: Any, wanted: Any) -> TriedPipeline:
    """What was found, and how many calls are foreseen by a plan of a branch for each call of a step."""
    count = found.calls_per_step or 1
    options = PlanOptions(branches=count, force=True)
    try:
        plan = plans_for(pipe, count, tiny.sizes(), options, call=tiny.arguments())
    except UsageError as error:
        return replace(found, no_streams=first_line(error))
    if all(own.streams == 1 for own in plan.values()):
        return replace(found, no_streams="branches are rows of a call, not calls of a step")
    with parallelize(pipe, plan, transport="emulation", exact=True) as engine:
        difference, stats = largest_difference(tiny.run(pipe), wanted), engine.stats
    return replace(found, foreseen=stats.foreseen_calls, wasted=stats.wasted_calls, branches_differ=difference)


def is_supported(tried: TriedPipeline, tolerance: float = 1e-4) -> bool:
    """Whether it is exact, repeatable and looks ahead."""
    exact = tried.difference is not None and max(tried.difference, tried.branches_differ or 0.0) <= tolerance
    return tried.failed is None and exact and bool(tried.repeats) and bool(tried.looks_ahead)
