"""measure: runs a pipeline sequentially, in each configuration of the engine, and with fewer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from partitioner.models.samplers import denoiser_calls, steps_of
from runtime.driver.noise_schedule import is_stochastic
from runtime.pipeline import parallelize
from tools.quality.engine_config import Way
from tools.quality.measured_pipeline import Subject
from tools.quality.rows import Judge, Row
from tools.quality.samplers import Case


def measure(
    subject: Subject, case: Case, ways: Sequence[Way], warmup: int, **more: Any
) -> Iterator[tuple[Row, torch.Tensor]]:
    """The rows of a case with their pictures: sequential, each way, then fewer steps for every speed-up reached.

    more: fields of Judge.
    """
    subject.use(case)
    reference = subject.generate(case.steps)
    judge = Judge(subject, case, reference, **more)
    yield judge.sequential(case.steps, reference), reference
    gains = []
    for way in ways:
        plan, form = subject.plan(way)
        mode = "async" if way.predictor not in (None, "lookahead") else plan.mode
        # with a sampler that adds noise the engine runs async
        lookahead = mode == "lookahead" and plan.components > 1 and not is_stochastic(subject.pipe.scheduler)
        exact = max(warmup, plan.components) if lookahead else warmup
        hop = plan.predictor if mode == "lookahead" or way.predictor is None else way.predictor
        with parallelize(
            subject.pipe, plan, transport="emulation", mode=mode, warmup=exact, predictor=hop, keep_weights=True
        ):
            pixels = subject.generate(case.steps)
        run = plan.model_copy(update={"warmup": exact, "mode": "lookahead" if lookahead else "async"})
        gains.append(run.speedup(case.steps, subject.sampler))
        named = "exact" if plan.components == 1 else "lookahead" if lookahead else hop
        row = judge.row(
            pixels, devices=plan.ranks, branches=plan.branches, components=plan.components, period=plan.period,
            split=form, predictor=named, steps=case.steps, warmup=exact, speedup=gains[-1],
        )  # fmt: skip
        yield row, pixels
    calls = denoiser_calls(subject.sampler, case.steps)
    for steps in sorted({steps_of(subject.sampler, calls / gain) for gain in gains} - {case.steps}, reverse=True):
        pixels = subject.generate(steps)
        yield judge.sequential(steps, pixels), pixels
