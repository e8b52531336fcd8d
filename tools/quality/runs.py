"""measure: runs a pipeline sequentially, with the engine in each configuration, and sequentially with fewer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from partitioner.models.samplers import denoiser_calls, refusal_of, steps_of
from partitioner.plan.plan import Plan
from runtime.options import decibels
from runtime.pipeline import parallelize
from tools.quality.engine_config import EngineConfig
from tools.quality.measured_pipeline import MeasuredPipeline
from tools.quality.metrics import PictureMetrics
from tools.quality.noise_floor import noise_floors
from tools.quality.result_row import ResultRow
from tools.quality.samplers import SamplingCase
from tools.quality.scorer import PictureScorer


def measure(
    pipeline: MeasuredPipeline,
    case: SamplingCase,
    configs: Sequence[EngineConfig],
    warmup: int | None,
    metrics: PictureMetrics,
    *,
    guard: float | str,
    floor_samples: int,
) -> Iterator[tuple[ResultRow, torch.Tensor]]:
    """The rows of a case, each with its pictures (samples, 3, height, width) in [0, 1].

    warmup: exact first steps; None: the plan's. guard: ``EngineOptions.quality``. floor_samples: of how many samples
    the noise floor of half precision is measured.

    First the sequential output, which the others are compared with; then the engine in each configuration; then, for
    every speed-up that was reached, the baseline: as many fewer sequential steps as take the same time.
    """
    pipeline.use(case)
    reference = pipeline.generate(case.steps)
    scorer = PictureScorer(pipeline, case, reference, metrics, noise_floors(pipeline, case, reference[:floor_samples]))
    yield scorer.sequential_row(case.steps, reference), reference
    speedups = []  # not rounded, as those of rows are
    for config in configs:
        row, pixels, speedup = _run_engine(scorer, config, warmup, guard)
        speedups.append(speedup)
        yield row, pixels
    calls = denoiser_calls(pipeline.sampler, case.steps)
    fewer = {steps_of(pipeline.sampler, calls / speedup) for speedup in speedups} - {case.steps}
    for steps in sorted(fewer, reverse=True):
        pixels = pipeline.generate(steps)
        yield scorer.sequential_row(steps, pixels), pixels


def speedup_of(plan: Plan, exact: int, others: int) -> float:
    """Of so many exact and other calls over as many sequential ones, by the times that the plan predicts."""
    figures = plan.predicted
    return (exact + others) * figures.sequential_ms / (exact * figures.exact_step_ms + others * figures.step_ms)


def _run_engine(
    scorer: PictureScorer, config: EngineConfig, warmup: int | None, guard: float | str
) -> tuple[ResultRow, torch.Tensor, float]:
    """(row, pictures, speed-up) of the engine in one configuration."""
    pipeline, steps = scorer.pipeline, scorer.case.steps
    plan, form = pipeline.plan(config)
    mode = "async" if config.predictor not in (None, "lookahead") else plan.mode
    ahead = mode == "lookahead" and plan.components > 1
    lookahead = ahead and refusal_of(pipeline.sampler) is None
    # what cannot be predicted the engine runs exactly, without a guard async
    all_exact = plan.components == 1 or (ahead and not lookahead and decibels(guard) is not None)
    exact = plan.warmup if warmup is None else max(warmup, 2) if lookahead else warmup
    predictor = plan.predictor if mode == "lookahead" or config.predictor is None else config.predictor
    with parallelize(
        pipeline.pipe,
        plan,
        transport="emulation",
        mode=mode,
        warmup=exact,
        predictor=predictor,
        quality=guard,
        keep_weights=True,
    ) as engine:
        pixels = pipeline.generate(steps)
        stats = engine.stats
    if plan.components == 1:
        speedup = plan.speedup(steps, pipeline.sampler)
    else:
        speedup = speedup_of(plan, stats.exact_steps, stats.steps - stats.exact_steps)
    calls = denoiser_calls(pipeline.sampler, steps)
    row = scorer.row(
        pixels, devices=plan.ranks, branches=plan.branches, components=plan.components, period=plan.period, split=form,
        predictor="exact" if all_exact else "lookahead" if lookahead else predictor, steps=steps,
        warmup=exact, speedup=speedup, guard=decibels(guard) if lookahead else None,
        exact_calls=round(calls * stats.exact_steps / stats.steps, 2),
    )  # fmt: skip
    return row, pixels, speedup
