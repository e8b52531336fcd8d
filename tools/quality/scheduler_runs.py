"""Contestants: a shipped pipeline alone and under two engines, and what they make of a scheduler."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from partitioner.errors import first_line
from partitioner.models.sampler import Sampler
from partitioner.models.sampler_probe import probe
from partitioner.models.samplers import USUAL
from runtime.engine import Engine
from runtime.pipeline import parallelize
from tools.pictures.similarity import psnr
from tools.quality.engine_config import parse_config
from tools.quality.measured_pipeline import MeasuredPipeline, shipped_pipeline
from tools.quality.samplers import FLOW, predicts_flow

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


class Contestants:
    """A shipped pipeline alone, with a look-ahead engine, and with the same plan in async mode.

    Each has a pipeline of its own, so that an engine is started once and not for every case.
    """

    def __init__(self, denoiser: str, samples: int, stack: ExitStack) -> None:
        """Load the pipelines and start the engines. stack: ends them."""
        self._alone, self._ahead, self._held = (shipped_pipeline(denoiser, samples, samples, 3.0) for _ in range(3))
        self._plan, _ = self._alone.plan(WAY)
        self._engine = self._start(self._ahead, "lookahead", stack)
        self._start(self._held, "async", stack)

    def _start(self, pipeline: MeasuredPipeline, mode: str, stack: ExitStack) -> Engine:
        options: dict[str, Any] = {"mode": mode, "warmup": WARMUP, "predictor": "hold", "keep_weights": True}
        return stack.enter_context(parallelize(pipeline.pipe, self._plan, transport="emulation", **options))

    def scheduler(self, name: str) -> Any:
        """A scheduler of that class of diffusers, configured for this pipeline.

        Raises:
            NotRun: it cannot be built, or this pipeline cannot run it.
        """
        import diffusers

        flow = predicts_flow(self._alone.own_scheduler)
        try:
            kind = getattr(diffusers, name)
            taken = inspect.signature(kind.__init__).parameters
            own = {**USUAL, **self._alone.own_scheduler.config, **(FLOW if flow else {})}
            made = kind(**{key: value for key, value in own.items() if key in taken})
            self._alone.pipe.scheduler = made
            pictures = self._alone.generate(10, 1)
        except Exception as error:  # whatever a class raises that is for other pipelines
            raise NotRun(f"{self._alone.name}: {first_line(error) or type(error).__name__}") from error
        sampler = probe(made)
        if sampler.meaning is not None and sampler.flow != flow:
            raise NotRun(f"{self._alone.name}: its denoiser's output means something else")
        if not bool(torch.isfinite(pictures).all()):
            raise NotRun(f"{self._alone.name}: no finite picture")
        return made

    def row(self, scheduler: Any, guidance: float, steps: int) -> SchedulerRow:
        """What they make of a scheduler at one guidance scale and number of steps."""
        for pipeline in (self._alone, self._ahead, self._held):
            pipeline.arguments["guidance_scale"] = guidance
            pipeline.pipe.scheduler = scheduler
        reference = self._alone.generate(steps)
        said, before = saying(probe(scheduler)), self._counts()
        ahead = _db(self._ahead.generate(steps), reference)
        calls = tuple(now - then for now, then in zip(self._counts(), before, strict=True))
        held = _db(self._held.generate(steps), reference)
        fewer = max(2, min(steps - 1, round(steps * self._share_of_time(calls))))
        return SchedulerRow(
            denoiser=self._alone.name,
            scheduler=type(scheduler).__name__,
            guidance=guidance,
            steps=steps,
            says=said,
            lookahead_db=ahead,
            hold_db=held,
            fewer_db=_db(self._alone.generate(fewer), reference),
            fewer_steps=fewer,
            calls=calls,
        )

    def _counts(self) -> tuple[int, ...]:
        """Calls of the look-ahead engine so far: exact, in look-ahead, async."""
        stats = self._engine.stats
        return stats.exact_steps, stats.lookahead_steps, stats.async_steps

    def _share_of_time(self, calls: tuple[int, ...]) -> float:
        """The time of so many exact, look-ahead and async calls over that of as many sequential ones, as planned."""
        figures = self._plan.predicted
        spent = calls[0] * figures.exact_step_ms + sum(calls[1:]) * figures.step_ms
        return spent / (sum(calls) * figures.sequential_ms)


def saying(sampler: Sampler) -> str:
    """What the probe says, in words."""
    if sampler.refusal is not None:
        return sampler.refusal
    if sampler.second_share is not None:
        return f"two calls per step, the second's share is {sampler.second_share:g}"
    return (
        f"multistep, errors grow up to {sampler.gain:.1f}-fold in a step" if sampler.multistep else "one call per step"
    )


def _db(pictures: torch.Tensor, reference: torch.Tensor) -> float:
    return round(float(psnr(pictures, reference).median()), 1)
