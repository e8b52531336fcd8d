"""MeasuredPipeline: a pipeline and the prompts and seeds whose pictures are measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline

from partitioner.costs.model import CostModel
from partitioner.errors import UsageError
from partitioner.models.find_spec import live_spec
from partitioner.models.guidance_scale import live_scale, scale_in_effect
from partitioner.models.samplers import config_text, settings_text
from partitioner.plan.plan import Plan
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import Planning, plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromSpec
from partitioner.search.mode import Mode
from runtime.denoiser import denoiser_name
from runtime.loading import load_pipeline
from tools.modular_pipelines import modular_pipeline
from tools.pictures.pipelines import TRAINED, call_arguments
from tools.pictures.shapes import Pictures, draw_labels
from tools.quality.engine_config import EngineConfig
from tools.quality.samplers import SCHEDULERS, SamplingCase, predicts_flow


class MeasuredPipeline:
    """A pipeline, and the prompt of every sample; the seed of a sample is its number.

    Attributes:
        pipe: of diffusers.
        name: of its denoiser, for the results.
        prompts: one per sample.
        chunk: samples per call of the pipeline.
        arguments: keyword arguments of every call.
        own_scheduler: the one that it came with.
        guidance_scale: in effect in every call; None where it is not known.
        labels: (samples, 4), what the classifier should recognise; None where the prompts are a user's.
    """

    def __init__(
        self,
        pipe: Any,
        name: str,
        prompts: Sequence[str],
        *,
        chunk: int,
        guidance: float | None,
        load: Callable[[torch.dtype], Any] | None = None,
        **arguments: Any,
    ) -> None:
        self.pipe = pipe
        self._load = load
        self.name = name
        self.prompts = prompts
        self.chunk = min(chunk, len(prompts))
        self.arguments = arguments | ({} if guidance is None else {"guidance_scale": guidance})
        self.guidance_scale = guidance
        self.labels: torch.Tensor | None = None
        self._plans: dict[tuple[Any, ...], tuple[Plan, str]] = {}
        self.own_scheduler = pipe.scheduler
        pipe.set_progress_bar_config(disable=True)

    def use(self, case: SamplingCase) -> None:
        """Give the pipeline the case's sampler.

        Raises:
            UsageError: it is for denoisers that predict a flow and this one predicts noise, or the other way round.
        """
        if case.scheduler is None:
            self.pipe.scheduler = self.own_scheduler
            return
        import diffusers

        name, options = SCHEDULERS[case.scheduler]
        if case.scheduler.startswith("flow") != predicts_flow(self.own_scheduler):
            raise UsageError(
                f"--scheduler {case.scheduler} does not suit {self.name}, whose denoiser predicts "
                f"{'a flow' if predicts_flow(self.own_scheduler) else 'no flow'}"
            )
        self.pipe.scheduler = getattr(diffusers, name).from_config(self.own_scheduler.config, **options)

    def in_dtype(self, dtype: torch.dtype) -> MeasuredPipeline:
        """The same prompts and seeds with the pipeline loaded once more, in another dtype, with its own scheduler.

        Raises:
            UsageError: it cannot be loaded so.
        """
        if self._load is None:
            raise UsageError(f"{self.name} was handed over loaded, and cannot be loaded again in {dtype}")
        other = copy.copy(self)
        other.pipe = self._load(dtype)
        other.own_scheduler = other.pipe.scheduler
        other.pipe.set_progress_bar_config(disable=True)
        return other

    @property
    def sampler(self) -> str:
        """Class of the pipeline's scheduler."""
        return type(self.pipe.scheduler).__name__

    @property
    def sampler_settings(self) -> str:
        """How that scheduler is configured, see ``partitioner.models.samplers``."""
        return settings_text(self.sampler, config_text(self.pipe.scheduler.config))

    def generate(self, steps: int, samples: int | None = None) -> torch.Tensor:
        """Pictures (samples, 3, height, width) in [0, 1].

        A sample depends on its seed and prompt only, not on those that are computed with it.

        Args:
            steps: denoising steps.
            samples: how many; all by default.
        """
        return self.pictures_of(range(samples or len(self.prompts)), steps)

    @torch.no_grad()
    def pictures_of(self, numbers: Sequence[int], steps: int) -> torch.Tensor:
        """As ``generate``, of the samples of these numbers."""
        made = []
        for first in range(0, len(numbers), self.chunk):
            some = numbers[first : first + self.chunk]
            generators = [torch.Generator().manual_seed(number) for number in some]
            prompts = [self.prompts[number] for number in some]
            result = self.pipe(
                prompt=prompts, num_inference_steps=steps, generator=generators, output_type="pt", **self.arguments
            )
            made.append(result.images.float())
        return torch.cat(made)

    def plan(self, config: EngineConfig) -> tuple[Plan, str]:
        """The plan for a configuration, for calls of ``chunk`` samples, and the form of its split."""
        mode: Mode | None = {"chain": "lookahead", "free": "async"}.get(config.split or "")  # type: ignore[assignment]
        if config.period > 1:
            mode = "async"
        key = (config.devices, config.branches, config.period, mode)
        if key not in self._plans:
            # as many branches as for one sample: that several are made at once is only to measure sooner
            branches = config.branches or self._planned(config, mode, 1, None).plan.branches
            made = self._planned(config, mode, self.chunk, branches)
            split = made.chosen.split
            self._plans[key] = made.plan, "one" if split is None else split.form
        return self._plans[key]

    def _planned(self, config: EngineConfig, mode: Mode | None, batch: int, branches: int | None) -> Planning:
        """A plan for calls of so many samples."""
        denoiser = getattr(self.pipe, denoiser_name(self.pipe))
        if isinstance(self.pipe, DiffusionPipeline):
            spec = live_spec(denoiser, self.pipe, batch=batch)
        else:  # a modular pipeline's call says nothing of its arguments
            spec = live_spec(denoiser, self.pipe, call={"prompt": list(self.prompts[:batch]), **self.arguments})
        options = PlanOptions(branches=branches, mode=mode, period=config.period, force=True)
        return plan(PlanRequest(FromSpec(spec), config.devices, CostModel("cpu"), options))


def shipped_pipeline(
    name: str, samples: int, chunk: int, guidance: float | None, *, two_calls: bool = False
) -> MeasuredPipeline:
    """A pipeline of tools/trained with random prompts of the words that it was trained with.

    Args:
        name: of its denoiser.
        samples: how many pictures are made.
        chunk: how many in one call of the pipeline.
        guidance: scale; None for 3.
        two_calls: have guidance make two calls of the denoiser instead of one of both halves, by diffusers' modular
            pipeline.

    Raises:
        UsageError: no modular pipeline of diffusers runs this denoiser.
    """
    scale = 3.0 if guidance is None else guidance
    labels = draw_labels(samples, torch.Generator().manual_seed(1))

    def load(dtype: torch.dtype) -> Any:
        pipe = load_pipeline(TRAINED / name, dtype)
        return two_call_pipeline(pipe, scale) if two_calls else pipe

    pipeline = MeasuredPipeline(
        load(torch.float32),
        name,
        Pictures(torch.empty(0), labels).captions,
        chunk=chunk,
        guidance=None if two_calls else scale,
        load=load,
        **call_arguments(name),
        **({"negative_prompt": ""} if two_calls else {}),  # without one, both calls have the prompt
    )
    pipeline.guidance_scale = scale_in_effect("batch", scale)
    pipeline.labels = labels
    return pipeline


def two_call_pipeline(pipe: Any, guidance: float) -> Any:
    """The modular pipeline of a StableDiffusion3Pipeline's parts, whose guidance makes two calls of the denoiser.

    Raises:
        UsageError: it is a pipeline of another class.
    """
    from diffusers.guiders import ClassifierFreeGuidance
    from diffusers.modular_pipelines import StableDiffusion3AutoBlocks

    if type(pipe) is not StableDiffusion3Pipeline:
        raise UsageError(f"--two-calls is for mmdit: nothing here runs a {type(pipe).__name__} with guidance so")
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    return modular_pipeline(
        StableDiffusion3AutoBlocks(), **parts, guider=ClassifierFreeGuidance(guidance_scale=guidance)
    )


def users_pipeline(folder: str, prompts: Sequence[str], samples: int, guidance: float | None) -> MeasuredPipeline:
    """A pipeline in a folder, one sample per call, the prompts in turn.

    Raises:
        UsageError: there is no prompt, or the folder holds no pipeline that can be loaded.
    """
    if not prompts:
        raise UsageError("--pipeline needs --prompt, once or several times")

    def load(dtype: torch.dtype) -> Any:
        return load_pipeline(folder, dtype)

    named = [prompts[number % len(prompts)] for number in range(samples)]
    pipe = load(torch.float32)
    pipeline = MeasuredPipeline(pipe, Path(folder).name, named, chunk=1, guidance=guidance, load=load)
    spec = live_spec(getattr(pipe, denoiser_name(pipe)), pipe)
    pipeline.guidance_scale = scale_in_effect(spec.guidance_style, live_scale(pipe, pipeline.arguments))
    return pipeline
