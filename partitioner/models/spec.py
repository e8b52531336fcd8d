"""model_spec: a name, folder or hub id to a ModelSpec: how to build a denoiser, its example inputs and their roles.

Torch and diffusers are imported only when something is built.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError
from partitioner.graph.ir import Role
from partitioner.models.build import build_denoiser
from partitioner.models.built_in import BUILT_IN
from partitioner.models.guidance import GuidanceStyle, guidance_style
from partitioner.models.inputs import ExampleTensor, Inputs
from partitioner.models.registry import ARCHITECTURES, Architecture, Request, load_plugins, nearest_names
from partitioner.models.source import ModelSource, diffusers_class, find_source

if TYPE_CHECKING:
    import torch
    from torch import nn

    from partitioner.graph.ir import TracedGraph


DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class ModelSpec:
    """How to build a denoiser, its example inputs and their roles; a value that builds nothing until asked.

    Attributes:
        name: What plans call the model.
        class_name: The class of the denoiser.
        inputs: The arguments of one call.
        branch_inputs: The arguments of a call for one half of guidance; the same where halves is 1.
        halves: 2 where a call holds both halves of guidance in one batch, else 1.
        batch: Images or videos per call.
        dtype: "float16", "bfloat16" or "float32".
        make: Makes the denoiser, with torch's default dtype.
        revision: The commit of a hub id, else None.
        scheduler: The class of the pipeline's sampler; None where it is not known.
        steps: Of one generation, by the pipeline's default; None where that is not known.
        guidance_style: How guidance is done, see ``guidance_style``.
    """

    name: str
    class_name: str
    inputs: Inputs
    branch_inputs: Inputs
    halves: int
    batch: int
    dtype: str
    make: Callable[[], nn.Module]
    revision: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    guidance_style: GuidanceStyle = "none"

    def load(self) -> None:
        """Import what building and tracing need, which takes seconds; else the first ``trace_model`` does it."""
        importlib.import_module("partitioner.graph.export")
        if self.class_name in ARCHITECTURES and ARCHITECTURES[self.class_name].build is None:
            diffusers_class(self.class_name)

    def build(self) -> nn.Module:
        """The denoiser in eval mode, with random weights; inside ``graph.export.fake_mode()`` without any."""
        import torch

        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.dtype))
        try:
            return self.make().eval()
        finally:
            torch.set_default_dtype(before)

    @property
    def roles(self) -> dict[str, Role]:
        """Role of each tensor argument, by its path ("added_cond_kwargs.text_embeds")."""
        return dict(_roles("", self.inputs))

    def example_inputs(self, *, branch: bool = False) -> dict[str, Any]:
        """Arguments of one call, with tensors of zeros.

        Args:
            branch: Those of a call for one half of guidance.

        Raises:
            UsageError: One half is asked for, and the calls hold no two.
        """
        if branch and self.halves == 1:
            raise UsageError(f"{self.name} has one branch: its calls hold no guidance batch to split; use --branches 1")
        arguments: dict[str, Any] = _zeros(self.branch_inputs if branch else self.inputs, self.dtype)
        return arguments


def _roles(path: str, inputs: Any) -> Iterator[tuple[str, Role]]:
    if isinstance(inputs, ExampleTensor):
        yield path, inputs.role
    elif isinstance(inputs, (Mapping, list, tuple)):
        for key, value in inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs):
            yield from _roles(f"{path}.{key}" if path else str(key), value)


def _zeros(inputs: Any, dtype: str) -> Any:
    import torch

    if isinstance(inputs, ExampleTensor):
        return torch.zeros(inputs.shape, dtype=getattr(torch, inputs.dtype or dtype))
    if isinstance(inputs, Mapping):
        return {name: _zeros(value, dtype) for name, value in inputs.items()}
    return type(inputs)(_zeros(value, dtype) for value in inputs) if isinstance(inputs, (list, tuple)) else inputs


def trace_model(spec: ModelSpec, *, branch: bool = False, denoiser: nn.Module | None = None) -> TracedGraph:
    """Trace a denoiser with the inputs of its spec.

    Args:
        spec: The denoiser and its inputs.
        branch: Trace a call for one half of guidance.
        denoiser: The one in memory, traced with all that was done to it since it was made (LoRA, fused layers, hooks).
            Default: one that is built without weights.

    Raises:
        TraceError: The denoiser cannot be traced.
        UsageError: One half is asked for, and the calls hold no two.
    """
    from partitioner.graph.export import fake_mode, trace
    from partitioner.graph.fakes import traceable

    if denoiser is not None:
        with traceable(denoiser):
            return trace(denoiser, spec.example_inputs(branch=branch), spec.roles, model=spec.name)
    with fake_mode():
        return trace(spec.build(), spec.example_inputs(branch=branch), spec.roles, model=spec.name)


def model_spec(
    model: str,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch: int = 1,
    guidance: bool = True,
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
        dtype: "float16", "bfloat16" or "float32"; None for what the architecture is registered with.

    Raises:
        UsageError: The model or its class is not known, or it cannot have that size or dtype.

    >>> spec = model_spec("sd15", height=256, width=256, dtype="float32")
    >>> spec.inputs["sample"].shape, spec.halves, spec.dtype
    ((2, 4, 32, 32), 2, 'float32')
    """
    source, architecture = _find(model)
    return _spec(source, architecture, _Sizes(height, width, frames, batch, guidance), dtype)


def live_spec(
    denoiser: Any,
    pipeline: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch: int = 1,
    guidance: bool = True,
) -> ModelSpec:
    """The spec of a denoiser in memory, for the dtype that it has.

    Args:
        denoiser: The module.
        pipeline: The diffusers pipeline that it belongs to.
        height: Of the images, in pixels; this and the following as for model_spec.
        width: Of the images, in pixels.
        frames: Of the video.
        batch: Images or videos per prompt.
        guidance: Whether classifier-free guidance is used.

    Raises:
        UsageError: The arguments of its class are not known, or it cannot have that size.
    """
    load_plugins()
    class_name = type(denoiser).__name__
    vae = getattr(pipeline, "vae", None)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(str(getattr(pipeline, "name_or_path", ""))).name).strip("-._")
    source = ModelSource(
        name=name or class_name,
        class_name=class_name,
        config=dict(denoiser.config),
        pipeline={"_class_name": type(pipeline).__name__, **dict(pipeline.config)},
        vae=dict(vae.config) if vae is not None else {},
    )
    architecture = _known(source, class_name)
    return _spec(source, architecture, _Sizes(height, width, frames, batch, guidance), denoiser.dtype, denoiser)


@dataclass(frozen=True, slots=True)
class _Sizes:
    height: int | None
    width: int | None
    frames: int | None
    batch: int
    guidance: bool

    def check(self, model: str, video: bool) -> None:
        for option in ("height", "width", "frames", "batch"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"--{option} is {value}; expected 1 or more")
        if self.frames is not None and not video:
            raise UsageError(f"{model} makes images, which have no frames; leave --frames out")


def _spec(
    source: ModelSource,
    architecture: Architecture,
    sizes: _Sizes,
    dtype: str | torch.dtype | None,
    denoiser: Any = None,
) -> ModelSpec:
    sizes.check(source.name, architecture.video)
    config = dict(source.config)
    style = guidance_style(architecture.guidance_style, config, source.pipeline, sizes.guidance)
    halves = 2 if style == "batch" else 1
    height, width, frames = (
        source.sizes.get(name) if asked is None else asked
        for name, asked in (("height", sizes.height), ("width", sizes.width), ("frames", sizes.frames))
    )

    def describe(rows: int) -> Inputs:
        request = Request(height, width, frames, sizes.batch, rows, config, source.pipeline, source.vae, denoiser)
        inputs = architecture.describe(request)
        return inputs if architecture.build else {**inputs, "return_dict": False}

    return ModelSpec(
        name=source.name,
        class_name=source.class_name,
        inputs=describe(sizes.batch * halves),
        branch_inputs=describe(sizes.batch),
        halves=halves,
        batch=sizes.batch,
        dtype=_dtype_name(architecture.dtype if dtype is None else dtype),
        make=architecture.build or partial(build_denoiser, source.class_name, config),
        revision=source.revision,
        scheduler=_scheduler_of(source.pipeline),
        steps=source.steps,
        guidance_style=style,
    )


def _scheduler_of(pipeline: Mapping[str, Any]) -> str | None:
    """The scheduler's class in a model_index.json: ["diffusers", "DDIMScheduler"]."""
    entry = pipeline.get("scheduler")
    return str(entry[1]) if isinstance(entry, list | tuple) and len(entry) == 2 and entry[1] else None


def _dtype_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"--dtype {name} is not one of {', '.join(DTYPES)}")
    return name


def _find(model: str) -> tuple[ModelSource, Architecture]:
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
    return source, _known(source, model)


def _known(source: ModelSource, model: str) -> Architecture:
    if source.class_name not in ARCHITECTURES:
        classes = ", ".join(name for name, known in ARCHITECTURES.items() if known.build is None)
        raise UsageError(
            f"{model} is a {source.class_name}, whose arguments are not known; known are {classes}. Describe its call "
            f'with @register_model("{source.class_name}") from partitioner.models, or use '
            "partitioner.compile(module, example_inputs, roles, devices=...)"
        )
    return ARCHITECTURES[source.class_name]
