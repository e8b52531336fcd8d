"""Subject: a pipeline and the prompts and seeds whose pictures are measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from partitioner.costs.model import CostModel
from partitioner.errors import UsageError, first_line
from partitioner.models.spec import live_spec
from partitioner.plan.plan import Plan
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromSpec
from partitioner.search.mode import Mode
from runtime.denoiser import denoiser_name
from runtime.driver.noise_schedule import is_flow
from runtime.loading import load_pipeline
from tools.pictures.pipelines import TRAINED, calling
from tools.pictures.shapes import Pictures, draw_labels
from tools.quality.engine_config import Way
from tools.quality.samplers import SCHEDULERS, Case


class Subject:
    """A pipeline and what is drawn with it.

    prompts, seeds: one per sample. chunk: samples per call of the pipeline. arguments: of every call.
    """

    def __init__(
        self, pipe: Any, name: str, prompts: Sequence[str], *, chunk: int, guidance: float | None, **arguments: Any
    ) -> None:
        self.pipe = pipe
        self.name = name
        self.prompts = prompts
        self.chunk = min(chunk, len(prompts))
        self.arguments = arguments | ({} if guidance is None else {"guidance_scale": guidance})
        self.labels: torch.Tensor | None = None
        self._plans: dict[tuple[Any, ...], tuple[Plan, str]] = {}
        self._own_scheduler = pipe.scheduler
        pipe.set_progress_bar_config(disable=True)

    def use(self, case: Case) -> None:
        """Give the pipeline the case's sampler."""
        if case.scheduler is None:
            self.pipe.scheduler = self._own_scheduler
            return
        import diffusers

        name, options = SCHEDULERS[case.scheduler]
        if case.scheduler.startswith("flow") != is_flow(self._own_scheduler):
            raise UsageError(
                f"--scheduler {case.scheduler} does not suit {self.name}, whose denoiser predicts "
                f"{'a flow' if is_flow(self._own_scheduler) else 'no flow'}"
            )
        self.pipe.scheduler = getattr(diffusers, name).from_config(self._own_scheduler.config, **options)

    @property
    def sampler(self) -> str:
        """Class of the pipeline's scheduler."""
        return type(self.pipe.scheduler).__name__

    @torch.no_grad()
    def generate(self, steps: int, samples: int | None = None) -> torch.Tensor:
        """(samples, 3, height, width) in [0, 1]; a sample depends on its seed, not on its neighbours. Default: all."""
        made = []
        count = samples or len(self.prompts)
        for first in range(0, count, self.chunk):
            numbers = range(first, min(first + self.chunk, count))
            generators = [torch.Generator().manual_seed(number) for number in numbers]
            prompts = [self.prompts[number] for number in numbers]
            result = self.pipe(
                prompts, num_inference_steps=steps, generator=generators, output_type="pt", **self.arguments
            )
            made.append(result.images.float())
        return torch.cat(made)

    def plan(self, way: Way) -> tuple[Plan, str]:
        """(plan, form of its split) for a way, for calls of ``chunk`` samples."""
        mode: Mode | None = {"chain": "lookahead", "free": "async"}.get(way.split or "")  # type: ignore[assignment]
        if way.period > 1:
            mode = "async"
        key = (way.devices, way.branches, way.period, mode)
        if key not in self._plans:
            denoiser = getattr(self.pipe, denoiser_name(self.pipe))
            spec = live_spec(denoiser, self.pipe, batch=self.chunk)
            options = PlanOptions(branches=way.branches, mode=mode, period=way.period, force=True)
            made = plan(PlanRequest(FromSpec(spec), way.devices, CostModel("cpu"), options))
            split = made.chosen.split
            self._plans[key] = made.plan, "one" if split is None else split.form
        return self._plans[key]


def shipped(name: str, samples: int, chunk: int, guidance: float | None) -> Subject:
    """A denoiser of tools/trained, with prompts of the procedural data set drawn at random."""
    labels = draw_labels(samples, torch.Generator().manual_seed(1))
    subject = Subject(
        load_pipeline(TRAINED / name, torch.float32),
        name,
        Pictures(torch.empty(0), labels).captions,
        chunk=chunk,
        guidance=3.0 if guidance is None else guidance,
        **calling(name),
    )
    subject.labels = labels
    return subject


def loaded(folder: str, prompts: Sequence[str], samples: int, guidance: float | None) -> Subject:
    """A user's pipeline, one sample at a time, the prompts in turn."""
    if not prompts:
        raise UsageError("--pipeline needs --prompt, once or several times")
    try:
        pipe = load_pipeline(folder, torch.float32)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"--pipeline {folder} cannot be loaded: {first_line(error)}") from error
    named = [prompts[number % len(prompts)] for number in range(samples)]
    return Subject(pipe, Path(folder).name, named, chunk=1, guidance=guidance)
