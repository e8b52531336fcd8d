"""described_spec: the spec of a denoiser whose class is described in the registry."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError
from partitioner.graph.nodes import Role
from partitioner.library import cause_of
from partitioner.models.build import build_denoiser
from partitioner.models.call_rows import CallRows
from partitioner.models.guidance import asked_style, guidance_style
from partitioner.models.inputs import Inputs, roles_in
from partitioner.models.registry import Architecture, NotDescribed, Request
from partitioner.models.sizes import Sizes
from partitioner.models.source import ModelSource
from partitioner.models.spec import ModelSpec, dtype_name

if TYPE_CHECKING:
    import torch

# what descriptions raise that find other values in a configuration than those that its class has
_OTHER_VALUES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def described_spec(
    source: ModelSource,
    architecture: Architecture | None,
    sizes: Sizes,
    dtype: str | torch.dtype | None,
    denoiser: Any = None,
) -> ModelSpec | None:
    """The spec by a class's description; None where there is none, and the pipeline may show how it calls it.

    Args:
        source: The denoiser's configuration.
        architecture: The description of its class.
        sizes: What it is called for.
        dtype: That of the spec; None for the description's.
        denoiser: The one in memory.

    Raises:
        UsageError: It cannot have that size or dtype, or there is a description that does not know it, and no pipeline.
    """
    if architecture is None:
        return None
    try:
        return _spec(source, architecture, sizes, dtype, denoiser)
    except NotDescribed:
        if source.place is None and denoiser is None:
            raise
        return None


def _spec(
    source: ModelSource,
    architecture: Architecture,
    sizes: Sizes,
    dtype: str | torch.dtype | None,
    denoiser: Any,
) -> ModelSpec:
    pipeline = source.pipeline.get("_class_name")
    if architecture.pipelines and pipeline is not None and pipeline not in architecture.pipelines:
        known = " and ".join(architecture.pipelines)
        raise NotDescribed(
            f"how a {pipeline} calls its {source.class_name} is not known, only how {known} does; use "
            "partitioner.compile(module, example_inputs, roles, devices=...)"
        )
    if sizes.frames is not None and not architecture.video:
        raise UsageError(f"{source.name} makes images, which have no frames; leave --frames out")
    config = dict(source.config)
    known = guidance_style(architecture.guidance_style, config, source.pipeline, sizes.guidance)
    style = asked_style(source.name, known, sizes.guidance_style)
    rows = sizes.batch * (2 if style == "batch" else 1)
    height, width, frames = (
        source.sizes.get(name) if asked is None else asked
        for name, asked in (("height", sizes.height), ("width", sizes.width), ("frames", sizes.frames))
    )

    def describe(rows: int) -> Inputs:
        request = Request(height, width, frames, sizes.batch, rows, config, source.pipeline, source.vae, denoiser)
        try:
            inputs = architecture.describe(request)
        except _OTHER_VALUES as error:
            raise UsageError(
                f"how {source.name} is called does not follow from its configurations, in which a value is missing or "
                f"of another kind than a {source.class_name} has: {cause_of(error)}"
            ) from error
        return inputs if architecture.build else {**inputs, "return_dict": False}

    inputs = describe(rows)
    return ModelSpec(
        name=source.name,
        class_name=source.class_name,
        inputs=inputs,
        step=_described_rows(inputs, rows, 2 if style == "two-calls" else 1, sizes.batch),
        inputs_for=describe,
        dtype=dtype_name(architecture.dtype if dtype is None else dtype),
        make=architecture.build or partial(build_denoiser, source.class_name, config),
        revision=source.revision,
        scheduler=source.scheduler()[0],
        scheduler_config=source.scheduler()[1],
        steps=source.steps,
        guidance_style=style,
        guidance_scale=source.guidance_scale,
    )


def _described_rows(inputs: Inputs, rows: int, calls: int, images: int) -> CallRows:
    latent = next(path for path, role in roles_in(inputs) if role is Role.LATENT)
    if "." in latent:
        return CallRows(rows, (rows,), calls, images, "its noisy samples are a list, which is not divided")
    return CallRows(rows, range(1, rows + 1), calls, images)
