"""model_spec: a name, folder or hub id to a ModelSpec: how to build a denoiser, its example inputs and their roles.

Torch and diffusers are imported only when something is built.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError
from partitioner.graph.ir import Role
from partitioner.library import cause_of
from partitioner.limits import DTYPES
from partitioner.models.build import build_denoiser
from partitioner.models.built_in import BUILT_IN
from partitioner.models.call_rows import CallRows, RowPaths, row_paths
from partitioner.models.guidance import GuidanceStyle, asked_style, guidance_style, guider_style
from partitioner.models.guidance_scale import live_scale
from partitioner.models.inputs import Inputs, roles_in, zeros
from partitioner.models.registry import ARCHITECTURES, Architecture, NotDescribed, Request, load_plugins, nearest_names
from partitioner.models.samplers import config_text
from partitioner.models.sizes import Sizes
from partitioner.models.source import SCHEDULER_NAME, ModelSource, diffusers_class, find_source, pipeline_folder

if TYPE_CHECKING:
    import torch
    from torch import nn

    from partitioner.graph.ir import TracedGraph
    from partitioner.models.recorded import Recording


# what descriptions raise that find other values in a configuration than those that its class has
_OTHER_VALUES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
RECORDED_DTYPE = "bfloat16"  # of a denoiser that no description names another for


@dataclass(frozen=True, slots=True)
class SteppedModule:
    """A module that a pipeline calls at each step beside its denoisers, such as a ControlNet.

    Attributes:
        name: What the pipeline calls it.
        class_name: Its class.
        parameters: How many it has.
        parameter_bytes: What they take.
    """

    name: str
    class_name: str
    parameters: int
    parameter_bytes: int


@dataclass(frozen=True)
class ModelSpec:
    """How to build a denoiser, its example inputs and their roles; a value that builds nothing until asked.

    Attributes:
        name: What plans call the model.
        class_name: The class of the denoiser.
        inputs: The arguments of one call.
        step: The calls of a step, and their rows.
        inputs_for: The arguments of a call of so many rows.
        dtype: "float16", "bfloat16" or "float32".
        make: Makes the denoiser, with torch's default dtype.
        revision: The commit of a hub id, else None.
        scheduler: The class of the pipeline's sampler; None where it is not known.
        scheduler_config: How that class is configured, see ``partitioner.models.samplers``; "" where it is not known.
        steps: Of one generation, by the pipeline's default; None where that is not known.
        guidance_style: How guidance is done, see ``guidance_style``.
        guidance_scale: The pipeline's, by default or as it will be called; None where that is not known.
        recorded: What a call of the pipeline showed, in words; None where a description gave the inputs.
        beside: What the pipeline calls at each step beside its denoisers.
    """

    name: str
    class_name: str
    inputs: Inputs
    step: CallRows
    inputs_for: Callable[[int], Inputs] = field(compare=False, repr=False)
    dtype: str
    make: Callable[[], nn.Module]
    revision: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    guidance_style: GuidanceStyle = "none"
    recorded: str | None = None
    beside: tuple[SteppedModule, ...] = ()
    scheduler_config: str = ""
    guidance_scale: float | None = None

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
        return dict(roles_in(self.inputs))

    def example_inputs(self, *, rows: int | None = None) -> dict[str, Any]:
        """Arguments of one call, with tensors of zeros.

        Args:
            rows: Those of a call of so many rows; None: of a whole call.

        Raises:
            UsageError: A call cannot be divided so.
        """
        if rows is not None and rows not in self.step.counts:
            why = f": {self.step.whole}" if self.step.whole is not None else ""
            raise UsageError(f"a call of {self.name} has {self.step.rows} rows, of which {rows} are no part{why}")
        whole = rows in (None, self.step.rows)
        arguments: dict[str, Any] = zeros(self.inputs if whole else self.inputs_for(rows or 1), self.dtype)
        return arguments


def trace_model(spec: ModelSpec, *, rows: int | None = None, denoiser: nn.Module | None = None) -> TracedGraph:
    """Trace a denoiser with the inputs of its spec.

    Args:
        spec: The denoiser and its inputs.
        rows: Trace a call of so many rows; None: a whole call.
        denoiser: The one in memory, traced with all that was done to it since it was made (LoRA, fused layers, hooks).
            Default: one that is built without weights.

    Raises:
        TraceError: The denoiser cannot be traced.
        UsageError: A call cannot be divided so.
    """
    from partitioner.graph.export import fake_mode, trace
    from partitioner.graph.fakes import traceable

    if denoiser is not None:
        with traceable(denoiser):
            return trace(denoiser, spec.example_inputs(rows=rows), spec.roles, model=spec.name)
    with fake_mode():
        return trace(spec.build(), spec.example_inputs(rows=rows), spec.roles, model=spec.name)


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
    from partitioner.graph.torch_private import uncompiled

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


def recorded_spec(source: ModelSource, recording: Recording, sizes: Sizes, dtype: str, pipe: Any) -> ModelSpec:
    """The spec that follows from a recording. pipe: the pipeline, in memory or of stand-ins.

    Raises:
        UsageError: Its calls cannot be of the style of guidance that is asked for.
    """
    assert source.part is not None
    taken = inspect.signature(type(getattr(pipe, source.part)).forward).parameters
    more = {"return_dict": False} if "return_dict" in taken else {}
    style = asked_style(source.name, recording.guidance, sizes.guidance_style)
    recording = _in_two_calls(source.name, recording) if style != recording.guidance else recording
    step, inputs_for = _recorded_rows(recording, dtype, more)
    return ModelSpec(
        name=source.name,
        class_name=source.class_name,
        inputs=inputs_for(step.rows),
        step=step,
        inputs_for=inputs_for,
        dtype=dtype,
        make=partial(build_denoiser, source.class_name, dict(source.config)),
        revision=source.revision,
        scheduler=_scheduler_of(source)[0],
        scheduler_config=_scheduler_of(source)[1],
        guidance_style=style,
        guidance_scale=source.guidance_scale,
        recorded=f"{source.class_name} as its pipeline calls it: {recording.seen}; guidance: {style}",
        beside=tuple(_stepped(pipe, name) for name in recording.beside),
    )


def _in_two_calls(name: str, recording: Recording) -> Recording:
    """What was recorded of a pipeline, had it one call more for guidance, each with the rows of one half."""
    if recording.guidance == "batch" and recording.half is None:
        raise UsageError(
            f"--guidance-style two-calls: what a call of {name} with one half of guidance looks like is not known"
        )
    seen = recording.half or recording.seen
    seen = replace(seen, calls_per_step=recording.seen.calls_per_step + 1)
    one = None if recording.half is not None else recording.one
    return replace(recording, seen=seen, half=None, guidance="two-calls", one=one)


def _recorded_rows(recording: Recording, dtype: str, more: Inputs) -> tuple[CallRows, Callable[[int], Inputs]]:
    """The rows of recorded calls, and the arguments of a call of fewer: those without guidance, or a part of these."""
    seen, part = recording.seen, recording.half or recording.one
    shapes = {path: tensor.shape for path, tensor in seen.example.tensors.items()}
    if not shapes[seen.latent] or seen.in_list:
        whole = "its noisy samples are a list, which is not divided"
        return CallRows(calls=seen.calls_per_step, whole=whole), lambda _: {**seen.inputs(dtype), **more}
    other = None if part is None else {path: tensor.shape for path, tensor in part.example.tensors.items()}
    paths = row_paths(shapes, seen.latent, other) if seen.rows > 1 else RowPaths()
    # each image and part of guidance has a row, or as many as it has frames, which belong together
    guided = 1 if recording.half is None else seen.rows // recording.half.rows
    each, rest = divmod(seen.rows, recording.images * guided)
    counts: Collection[int] = {seen.rows} if part is None else {part.rows, seen.rows}
    if paths.whole is None and not rest:
        counts = range(each, seen.rows + 1, each)

    def inputs_for(rows: int) -> Inputs:
        if part is not None and rows == part.rows:
            return {**part.inputs(dtype), **more}
        fewer = seen.with_shapes(lambda path, shape: paths.shape(path, shape, rows, seen.rows))
        return {**fewer.inputs(dtype), **more}

    step = CallRows(seen.rows, counts, seen.calls_per_step, min(recording.images, seen.rows), paths.whole)
    return step, inputs_for


def _stepped(pipe: Any, name: str) -> SteppedModule:
    parameters = list(getattr(pipe, name).parameters())
    count, size = sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
    return SteppedModule(name, type(getattr(pipe, name)).__name__, count, size)


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
        scheduler=_scheduler_of(source)[0],
        scheduler_config=_scheduler_of(source)[1],
        steps=source.steps,
        guidance_style=style,
        guidance_scale=source.guidance_scale,
    )


def _described_rows(inputs: Inputs, rows: int, calls: int, images: int) -> CallRows:
    latent = next(path for path, role in roles_in(inputs) if role is Role.LATENT)
    if "." in latent:
        return CallRows(rows, (rows,), calls, images, "its noisy samples are a list, which is not divided")
    return CallRows(rows, range(1, rows + 1), calls, images)


def _scheduler_of(source: ModelSource) -> tuple[str | None, str]:
    """Class and configuration of the denoiser's scheduler in a model_index.json: ["diffusers", "DDIMScheduler"].

    Where there are several, "prior_scheduler" is that of "prior" and of "prior_prior".
    """
    names = [name for name in source.pipeline if SCHEDULER_NAME.fullmatch(name)]
    own = [name for name in names if (source.part or "").startswith(name.removesuffix("scheduler").rstrip("_"))]
    name = max(own, key=len, default="scheduler")
    entry = source.pipeline.get(name)
    if not (isinstance(entry, list | tuple) and len(entry) == 2 and entry[1]):
        return None, ""
    return str(entry[1]), config_text(source.samplers[name]) if name in source.samplers else ""


def dtype_name(dtype: str | torch.dtype) -> str:
    """The name of a dtype that plans are made for; UsageError for another."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"--dtype {name} is not one of {', '.join(DTYPES)}")
    return name


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
