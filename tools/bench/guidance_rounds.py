"""measure_guidance: a pipeline with guidance in two calls on one rank and on two, timed by turns."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import nn

from partitioner.plan.plan import Plan
from partitioner.planning.options import PlanOptions
from runtime import parallelize
from runtime.denoiser import denoiser_name
from runtime.live_plans import plan_for
from tools.bench.guided_pipelines import DenoiserSize, GuidedPipeline
from tools.bench.settings import RANKS
from tools.support.tries import largest_difference


@dataclass
class GenerationTimes:
    """What was measured of generations of one pipeline, in ms.

    Attributes:
        whole_ms: of each, the time of the pipeline's call.
        step_ms: of each, the mean time of a step after the first, which no call of is foreseen.
        call_ms: of each denoiser call that was watched.
    """

    whole_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    call_ms: list[float] = field(default_factory=list)


def measure_guidance(
    name: str, size: DenoiserSize, guided: GuidedPipeline, steps: int, rounds: int, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure one pipeline: with its cache contexts, where it has some, and without.

    Args:
        name: of the pipeline.
        size: of its denoiser.
        guided: makes and calls it.
        steps: of a generation.
        rounds: of a generation on one rank and one on two.
        progress: is told what is done next.

    Yields:
        Rows of the document: times in ms, medians over the rounds.

    Raises:
        PartitionerError: no plan can be made.
        EngineError: a rank failed.
    """
    progress(f"{name}: planning")
    pipe = guided.pipe(size)
    plan = plan_for(pipe, RANKS, {}, PlanOptions(branches=RANKS, force=True), call=guided.arguments(size))
    for contexts in (True, False) if guided.contexts else (False,):
        progress(f"{name}: measuring {'with' if contexts else 'without'} cache contexts")
        yield {"pipeline": name, "cache_contexts": contexts, **_measured(guided, size, plan, contexts, steps, rounds)}


def _measured(
    guided: GuidedPipeline, size: DenoiserSize, plan: Plan, contexts: bool, steps: int, rounds: int
) -> dict[str, Any]:
    alone, parallel = guided.pipe(size), guided.pipe(size)
    denoiser = getattr(alone, denoiser_name(alone))
    one, two = GenerationTimes(), GenerationTimes()
    with parallelize(parallel, plan, exact=True) as engine:
        if not contexts:
            _leave_contexts_out(getattr(parallel, denoiser_name(parallel)))
        run = functools.partial(guided.run, size=size, steps=steps)
        wanted, made = _generate(run, alone, GenerationTimes()), _generate(run, parallel, GenerationTimes())
        before = engine.stats
        for number in range(rounds):
            turns = [(alone, one, denoiser), (parallel, two, None)]
            for pipe, found, watched in reversed(turns) if number % 2 else turns:
                _generate(run, pipe, found, watched)
        after = engine.stats
    step, whole = ([statistics.median(getattr(each, of)) for each in (one, two)] for of in ("step_ms", "whole_ms"))
    calls = (after.steps - before.steps) // rounds
    call_ms = statistics.median(one.call_ms)
    return {
        "ranks": plan.ranks,
        "streams": plan.streams,
        "steps": steps,
        "rounds": rounds,
        "call_ms": call_ms,
        "rest_share": 1 - sum(one.call_ms) / sum(one.whole_ms),
        "one_rank_step_ms": step[0],
        "two_ranks_step_ms": step[1],
        "step_ratio": step[1] / step[0],
        "step_ratios": [b / a for a, b in zip(one.step_ms, two.step_ms, strict=True)],
        "one_rank_generation_ms": whole[0],
        "two_ranks_generation_ms": whole[1],
        "generation_ratio": whole[1] / whole[0],
        "bit_equal": torch.equal(wanted, made),
        "largest_difference": largest_difference(wanted, made),
        "calls": calls,
        "foreseen_calls": (after.foreseen_calls - before.foreseen_calls) // rounds,
        "wasted_calls": after.wasted_calls,
    }


def _generate(
    run: Callable[[Any], torch.Tensor], pipe: Any, found: GenerationTimes, watched: nn.Module | None = None
) -> torch.Tensor:
    """Time a generation. watched: a denoiser that no engine computes, whose calls are timed."""
    with step_times(pipe.scheduler) as steps, call_times(watched) as calls:
        start = time.perf_counter()
        made = run(pipe)
        found.whole_ms.append(1e3 * (time.perf_counter() - start))
    found.step_ms.append(1e3 * (steps[-1] - steps[0]) / (len(steps) - 1))
    found.call_ms += [1e3 * seconds for seconds in calls]
    return made


@contextmanager
def step_times(scheduler: Any) -> Iterator[list[float]]:
    """Inside it a list grows by the time of each of a scheduler's steps, before which its timestep's calls are made."""
    times: list[float] = []
    own = type(scheduler).step

    @functools.wraps(own)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is scheduler:  # and no copy of it that something is found out by
            times.append(time.perf_counter())
        return own(self, *args, **kwargs)

    with mock.patch.object(type(scheduler), "step", step):
        yield times


@contextmanager
def call_times(denoiser: nn.Module | None) -> Iterator[list[float]]:
    """Inside it a list grows by the seconds of each of a denoiser's calls; None: of no denoiser's."""
    times: list[float] = []
    starts: list[float] = []
    hooks = [] if denoiser is None else [
        denoiser.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())),
        denoiser.register_forward_hook(lambda *_: times.append(time.perf_counter() - starts.pop())),
    ]  # fmt: skip
    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()


def _leave_contexts_out(denoiser: Any) -> None:
    """Have a denoiser's cache contexts do nothing, so that neither it nor the engine hears of them."""
    if hasattr(denoiser, "cache_context"):
        denoiser.cache_context = functools.wraps(denoiser.cache_context)(lambda *_args, **_kwargs: nullcontext())
