"""What run-plan does with a pipeline: load it, and call it with the command's options."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from partitioner.errors import UsageError
from partitioner.graph.torch_private.compiled import uncompiled
from partitioner.library import library_call
from partitioner.models.guidance_scale import live_scale, scale_in_effect
from partitioner.plan.pipeline_plans import PipelinePlans
from partitioner.plan.plan import Plan
from runtime.denoiser import may_be_denoisers
from runtime.errors import PlanMismatch
from runtime.loading import load_pipeline
from runtime.transport.in_memory import check_in_memory

_log = logging.getLogger("runtime")


def default_dtype(plan: Plan | PipelinePlans, devices: list[str] | None) -> str:
    """The dtype to run a pipeline in: float32 on a CPU, where half precision is slow, else the plan's.

    The dtype that a pipeline is saved in says little, because its parts may differ.
    """
    on_cpu = devices is None or devices[0].startswith("cpu")
    first = next(iter(plan.plans.values())) if isinstance(plan, PipelinePlans) else plan
    return "float32" if on_cpu else next(item.dtype for item in first.inputs if item.role == "latent")


def load(options: argparse.Namespace, dtype: torch.dtype) -> Any:
    """The pipeline that ``--pipeline`` names.

    Raises:
        UsageError: there is no such folder, file or hub id, or it holds no pipeline that can be loaded, or not all
            tensors of its denoisers.
    """
    local = Path(options.pipeline)
    if not os.path.exists(options.pipeline) and options.pipeline.count("/") != 1:
        raise UsageError(f"--pipeline {options.pipeline} is neither a folder nor a file nor a hub id (owner/name)")
    if (local / "modular_model_index.json").is_file():
        raise UsageError(
            f"--pipeline {options.pipeline} holds a modular pipeline, whose blocks say what it takes and gives: run it "
            "from Python, with runtime.parallelize(pipe, devices=N)"
        )
    if local.is_dir() and not (local / "model_index.json").is_file():
        what = "only a model's config.json" if (local / "config.json").is_file() else "no model_index.json"
        raise UsageError(
            f"--pipeline {options.pipeline} has {what}: expected a saved diffusers pipeline, whose folder has a "
            "model_index.json and the folders of its parts"
        )
    try:
        pipe = load_pipeline(options.pipeline, dtype, variant=options.variant, config=options.config)
    except UsageError as error:
        raise UsageError(f"--pipeline {error}{_advice(options)}") from (error.__cause__ or error)
    for name in may_be_denoisers(pipe):
        try:
            check_in_memory(uncompiled(getattr(pipe, name)))
        except PlanMismatch as error:
            raise UsageError(f"--pipeline {options.pipeline} cannot be run: {error}") from error
    return pipe


def _advice(options: argparse.Namespace) -> str:
    """What to add to the command where the folder shows it."""
    local = Path(options.pipeline)
    if local.is_file():
        return "" if options.config else "; --config FOLDER names a pipeline's folder with its configuration"
    variants = _variants(local) if local.is_dir() else []
    if options.variant in variants or not variants:
        return ""
    return f"; its weights are there as --variant {' or '.join(variants)}"


def _variants(folder: Path) -> list[str]:
    """Variants of weights in a pipeline's folder: fp16 of diffusion_pytorch_model.fp16.safetensors, also of shards."""
    names = {file.name for file in folder.glob("*/*.safetensors")}
    found = {
        re.match(r"(?:diffusion_pytorch_model|model)\.([A-Za-z0-9_]+?)(?:-\d+-of-\d+)?\.safetensors$", n) for n in names
    }
    return sorted({match[1] for match in found if match})


def warn_of_other_guidance(pipe: Any, plan: Plan | PipelinePlans, options: argparse.Namespace) -> None:
    """Say that the pipeline will be called with another guidance scale than the plan's quality was judged at."""
    first = next(iter(plan.plans.values())) if isinstance(plan, PipelinePlans) else plan
    asked = options.guidance_scale
    given = {} if asked is None else dict.fromkeys(("guidance_scale", "max_guidance_scale"), asked)
    scale = scale_in_effect(first.guidance_style, live_scale(pipe, given))
    if first.guidance_style == "none" and asked is not None:  # as a plan is, whose pipeline was to run without
        scale = max(1.0, asked)
    is_exact = first.components == 1 or options.exact
    if is_exact or None in (scale, first.guidance_scale) or scale == first.guidance_scale:
        return
    _log.warning(
        "the plan's quality was judged at a guidance scale of %g, and this run has %g; the higher, the further is the "
        "output from that of one device: partition-model --guidance-scale %g says what to expect",
        first.guidance_scale,
        scale,
        scale,
    )


def generate(pipe: Any, options: argparse.Namespace) -> list[Any]:
    """Call the pipeline with those of the options that it takes.

    Returns:
        The images, or the frames of the first video.

    Raises:
        UsageError: the pipeline takes no such option, needs one that is not given, or refuses its value.
    """
    wanted = {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "height": options.height,
        "width": options.width,
        "num_frames": options.frames,
        "guidance_scale": options.guidance_scale,
    }
    if options.image is not None:
        try:
            wanted["image"] = Image.open(options.image).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise UsageError(f"--image {options.image} cannot be read as an image") from error
    given = {name: value for name, value in wanted.items() if value is not None}
    parameters = inspect.signature(pipe.__call__).parameters
    if "use_resolution_binning" in parameters:  # PixArt would run at another size than was asked and planned for
        given["use_resolution_binning"] = False
    if "guidance_scale" in given and "max_guidance_scale" in parameters:  # SVD ramps it over the frames
        given["max_guidance_scale"] = given.pop("guidance_scale")
    refused = [name for name in given if name not in parameters]
    needed = [
        name for name in ("prompt", "image") if name in parameters and name not in given
        and parameters[name].default is inspect.Parameter.empty
    ]  # fmt: skip
    if "prompt" in parameters and "image" not in parameters and "prompt" not in given:
        needed.append("prompt")
    for names, what in ((refused, "takes no"), (needed, "needs")):
        if names:
            named = ", ".join(
                "--" + name.replace("num_frames", "frames").replace("_", "-") for name in dict.fromkeys(names)
            )
            raise UsageError(f"a {type(pipe).__name__} {what} {named}")
    generator = torch.Generator("cpu").manual_seed(options.seed)
    with library_call(f"the {type(pipe).__name__} refuses this call"):
        result = pipe(**given, num_inference_steps=options.steps, generator=generator)
    return list(result.frames[0] if hasattr(result, "frames") else result.images)
