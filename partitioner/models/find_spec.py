"""model_spec and live_spec: the spec of a denoiser by a name, folder or hub id, or of one in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError
from partitioner.models.built_in import BUILT_IN
from partitioner.models.described_spec import described_spec
from partitioner.models.guidance import GuidanceStyle, guider_style
from partitioner.models.guidance_scale import live_scale
from partitioner.models.recorded_spec import RECORDED_DTYPE, recorded_spec
from partitioner.models.registry import ARCHITECTURES, Architecture, load_plugins, nearest_names
from partitioner.models.sizes import Sizes
from partitioner.models.source import SCHEDULER_NAME, ModelSource, find_source, pipeline_folder
from partitioner.models.spec import ModelSpec, dtype_name

if TYPE_CHECKING:
    import torch


def model_spec(
    model: str,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch: int = 1,
    guidance: bool = True,
    guidance_style: GuidanceStyle | None = None,
    dtype: str | torch.dtype | None = None,
) -> ModelSpec:
    """The spec of a denoiser at given sizes; no weight is read.

    Args:
        model: A built-in or registered name, the folder of a diffusers pipeline or model, or a hub id.
        height: Of the images, in pixels; None for the pipeline's default, as for width and frames.
        width: Of the images, in pixels.
        frames: Of the video.
        batch: Images or videos per prompt.
        guidance: Whether classifier-free guidance is used.
        guidance_style: How it is done: "batch", "two-calls", "embedded" or "none"; None for the pipeline's way.
        dtype: "float16", "bfloat16" or "float32"; None for what the architecture is registered with.

    Raises:
        UsageError: The model or its class is not known, or it cannot have that size or dtype.

    >>> spec = model_spec("sd15", height=256, width=256, dtype="float32")
    >>> spec.inputs["sample"].shape, spec.step.rows, spec.dtype
    ((2, 4, 32, 32), 2, 'float32')
    """
    sizes = Sizes(height, width, frames, batch, guidance, guidance_style)
    source, architecture = find_model(model)
    spec = described_spec(source, architecture, sizes, dtype)
    if spec is not None:
        return spec
    dtype = dtype_name(RECORDED_DTYPE if dtype is None else dtype)

    from partitioner.models.recorded import record
    from partitioner.models.stand_ins import StandIns
    from partitioner.models.unweighted import build_pipeline

    stand_ins = StandIns()
    pipe = build_pipeline(pipeline_folder(source), source.pipeline, dtype, stand_ins)
    assert source.part is not None
    recording = record(pipe, source.part, stand_ins, sizes)
    return recorded_spec(source, recording, sizes, dtype, pipe)


def live_spec(
    denoiser: Any,
    pipeline: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch: int = 1,
    guidance: bool = True,
    guidance_style: GuidanceStyle | None = None,
    call: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """The spec of a denoiser in memory, for the dtype that it has.

    How it is called is read from its class's description, or else found by running a copy of the pipeline that has no
    weights for a few steps.

    Args:
        denoiser: The module.
        pipeline: The diffusers pipeline that it belongs to.
        height: Of the images, in pixels; this and the following as for model_spec.
        width: Of the images, in pixels.
        frames: Of the video.
        batch: Images or videos per prompt.
        guidance: Whether classifier-free guidance is used.
        guidance_style: How it is done; as for model_spec.
        call: Arguments that the pipeline will be called with, such as a control image. The call is then found by
            running, whatever its class; what is not given is guessed.

    Raises:
        UsageError: No call of the pipeline can be guessed, or it cannot have that size.
    """
    load_plugins()
    if guidance:
        guidance_style = guidance_style or guider_style(vars(pipeline))
    sizes = Sizes(height, width, frames, batch, guidance, guidance_style)
    source = live_source(denoiser, pipeline, call)
    spec = described_spec(source, ARCHITECTURES.get(source.class_name), sizes, denoiser.dtype, denoiser)
    if spec is not None and call is None:
        return spec

    from partitioner.models.recorded import record
    from partitioner.models.stand_ins import StandIns
    from partitioner.models.unweighted import twin_of

    stand_ins = StandIns()
    assert source.part is not None
    recording = record(twin_of(pipeline, stand_ins), source.part, stand_ins, sizes, call)
    return recorded_spec(source, recording, sizes, dtype_name(denoiser.dtype), pipeline)


def live_source(denoiser: Any, pipeline: Any, call: Mapping[str, Any] | None = None) -> ModelSource:
    """The source of a denoiser in memory, a module of a pipeline. call: arguments that this will be called with."""
    from partitioner.graph.torch_private.compiled import uncompiled

    class_name = type(denoiser).__name__
    vae = getattr(pipeline, "vae", None)
    samplers = {key: value for key, value in vars(pipeline).items() if SCHEDULER_NAME.fullmatch(key)}
    entries = {key: ("diffusers", type(value).__name__) for key, value in samplers.items()}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(str(getattr(pipeline, "name_or_path", ""))).name).strip("-._")
    return ModelSource(
        name=name or class_name,
        class_name=class_name,
        config=dict(denoiser.config),
        pipeline={"_class_name": type(pipeline).__name__, **dict(pipeline.config), **entries},
        vae=dict(vae.config) if vae is not None else {},
        guidance_scale=live_scale(pipeline, call),
        samplers={key: dict(getattr(value, "config", {})) for key, value in samplers.items()},
        part=next(
            (name for name, value in vars(pipeline).items() if value is denoiser or uncompiled(value) is denoiser), None
        ),
    )


def find_model(model: str) -> tuple[ModelSource, Architecture | None]:
    """The source of a name, folder or hub id, and the description of its class, if there is one."""
    if model not in BUILT_IN:  # a built-in name needs no package of anybody else's
        load_plugins()
    known = ARCHITECTURES.get(model)
    if known is not None and known.build is not None:
        return ModelSource(model, getattr(known.build, "__name__", model)), known
    source = find_source(model)
    if source is None:
        raise UsageError(
            f"no model named {model!r} (nearest: {', '.join(nearest_names(model))}); expected one that "
            "partition-model --list-models prints, the folder of a pipeline or model of diffusers, or a hub id"
        )
    return source, ARCHITECTURES.get(source.class_name)
