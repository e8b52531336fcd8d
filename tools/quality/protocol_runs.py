"""generate: a pipeline's pictures of a data set's prompts, sequentially, with the engine, and with fewer steps."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from partitioner.errors import UsageError
from partitioner.models.samplers import config_text, denoiser_calls, steps_of
from partitioner.plan.plan import Plan
from runtime.live_plans import named_plans
from runtime.loading import load_pipeline
from runtime.parts import place_parts
from runtime.pipeline import parallelize
from tools.quality.protocol_pictures import PictureFolder, PictureSample

RUNS = ("sequential", "engine", "fewer_steps")


@dataclass(frozen=True)
class ProtocolGeneration:
    """How pictures are made.

    Attributes:
        pipeline: a saved pipeline's folder.
        plan: a plan file.
        steps: denoising steps of the sequential run and of the engine.
        dtype: name of torch's, of the whole pipeline.
        devices: of the plan's ranks; the first runs the pipeline itself. Empty for the CPU.
        transport: of the engine.
        arguments: further ones of the pipeline's calls.
    """

    pipeline: Path
    plan: Path
    steps: int
    dtype: str
    devices: tuple[str, ...]
    transport: str
    arguments: dict[str, Any]

    def about(self, run: str, prompts: str) -> dict[str, Any]:
        """All that decides what a run's pictures look like. prompts: their digest."""
        made: dict[str, Any] = {"run": run, "pipeline": self.pipeline.name, "prompts": prompts, "steps": self.steps}
        made |= {"dtype": self.dtype, "arguments": self.arguments}
        if run == "sequential":
            return made
        return made | {
            "plan": hashlib.sha256(self.plan.read_bytes()).hexdigest()
        }  # which decides how few the steps are


def generate(how: ProtocolGeneration, run: str, folder: PictureFolder, samples: Sequence[PictureSample]) -> None:
    """Make the pictures of a run that its folder does not have yet, one in each call of the pipeline.

    Raises:
        UsageError: the pipeline cannot be loaded, or its calls make no picture.
    """
    missing = folder.missing(samples)
    if not missing:
        return
    pipe = load_pipeline(how.pipeline, getattr(torch, how.dtype))
    pipe.set_progress_bar_config(disable=True)
    plan = Plan.load(how.plan)
    steps = how.steps if run != "fewer_steps" else fewer_steps(pipe, plan, how.steps)
    devices = list(how.devices) or None
    if run != "engine":
        pipe.to(how.devices[0] if how.devices else "cpu")
    elif devices:
        place_parts(pipe, named_plans(pipe, plan, devices, {}, None), devices)
    engine = parallelize(pipe, plan, devices=devices, transport=how.transport) if run == "engine" else nullcontext()
    start = time.perf_counter()
    with engine:
        for count, sample in enumerate(missing, 1):
            generator = torch.Generator().manual_seed(sample.seed)
            made = pipe(
                prompt=sample.prompt.text, num_inference_steps=steps, generator=generator, output_type="pil",
                **how.arguments,
            )  # fmt: skip
            if not getattr(made, "images", None):
                raise UsageError(f"--pipeline {how.pipeline}: a {type(pipe).__name__} makes no pictures")
            folder.save(sample, made.images[0])
            spent = time.perf_counter() - start
            print(f"{spent:6.0f} s  {run}: {count} of {len(missing)} pictures", file=sys.stderr)


def fewer_steps(pipe: Any, plan: Plan, steps: int) -> int:
    """As many sequential steps as take the time of a run by the plan, by its predicted times."""
    sampler, config = type(pipe.scheduler).__name__, config_text(pipe.scheduler.config)
    return steps_of(sampler, denoiser_calls(sampler, steps, config) / plan.speedup(steps, sampler, config))
