"""model_specs and live_specs: the specs of all denoisers of a pipeline that need a plan each, by its names for them.

Most pipelines have one denoiser, or two that are made alike and share a plan. Where a pipeline has other modules that
may be called at each step it is run without weights, and its calls show which of them are denoisers (see ``record``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError, first_line
from partitioner.models.described_spec import described_spec
from partitioner.models.find_spec import find_model, live_source, live_spec, model_spec
from partitioner.models.guidance import GuidanceStyle, guider_style
from partitioner.models.recorded_spec import RECORDED_DTYPE, recorded_spec
from partitioner.models.registry import ARCHITECTURES, load_plugins
from partitioner.models.sizes import Sizes
from partitioner.models.source import DENOISER_NAMES, ModelSource, may_be_stepped, pipeline_folder
from partitioner.models.spec import ModelSpec, dtype_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from partitioner.models.stand_ins import StandIns

_log = logging.getLogger("partitioner")


def model_specs(
    model: str,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch: int = 1,
    guidance: bool = True,
    guidance_style: GuidanceStyle | None = None,
    dtype: str | torch.dtype | None = None,
) -> dict[str, ModelSpec]:
    """The spec of each denoiser of a model, the first one's first; of denoisers that are made alike the same object.

    Args:
        model: A built-in or registered name, the folder of a diffusers pipeline or model, or a hub id.
        height: As for model_spec, like all that follows.
        width: Of the images, in pixels.
        frames: Of the video.
        batch: Images or videos per prompt.
        guidance: Whether classifier-free guidance is used.
        guidance_style: How it is done.
        dtype: "float16", "bfloat16" or "float32".

    Returns:
        By the pipeline's names. One entry where one plan does for all of them; its name is "" where no pipeline is
        known.

    Raises:
        UsageError: As model_spec.

    >>> list(model_specs("sd15"))
    ['']
    """
    asked: dict[str, Any] = {
        "height": height, "width": width, "frames": frames, "batch": batch, "guidance": guidance,
        "guidance_style": guidance_style,
    }  # fmt: skip
    sizes = Sizes(**asked)
    source, architecture = find_model(model)
    part = source.part or ""
    if all(source.is_made_like(other) for other in source.others):
        return {part: model_spec(model, **asked, dtype=dtype)}
    described = described_spec(source, architecture, sizes, dtype)
    dtype = dtype_name(dtype or (RECORDED_DTYPE if described is None else described.dtype))

    from partitioner.models.stand_ins import StandIns
    from partitioner.models.unweighted import build_pipeline

    stand_ins = StandIns()
    try:
        pipe = build_pipeline(pipeline_folder(source), source.pipeline, dtype, stand_ins)
    except UsageError as error:
        return {part: _alone(described, source.others, error)}
    find = _Finder(pipe, stand_ins, sizes, {}, lambda _source: dtype, ModelSource.is_made_like)
    return find.specs([source, *source.others], described)


def live_specs(
    pipeline: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch: int = 1,
    guidance: bool = True,
    guidance_style: GuidanceStyle | None = None,
    call: Mapping[str, Any] | None = None,
) -> dict[str, ModelSpec]:
    """The same of a diffusers pipeline in memory, its denoisers as they are.

    Args:
        pipeline: The pipeline.
        height: As for live_spec, like all that follows.
        width: Of the images, in pixels.
        frames: Of the video.
        batch: Images or videos per prompt.
        guidance: Whether classifier-free guidance is used.
        guidance_style: How it is done.
        call: Arguments that the pipeline will be called with.

    Raises:
        UsageError: As live_spec; or the pipeline has no denoiser.
    """
    from partitioner.graph.torch_private.compiled import uncompiled

    if guidance:
        guidance_style = guidance_style or guider_style(vars(pipeline))
    asked: dict[str, Any] = {
        "height": height, "width": width, "frames": frames, "batch": batch, "guidance": guidance,
        "guidance_style": guidance_style,
    }  # fmt: skip
    modules: dict[str, Any] = {
        name: uncompiled(value) for name, value in vars(pipeline).items() if may_be_stepped(type(uncompiled(value)))
    }
    names = sorted(modules, key=lambda name: name not in DENOISER_NAMES)
    if not names:
        raise UsageError(
            f"a {type(pipeline).__name__} has no module that could be its denoiser; expected a diffusers pipeline with "
            f"one, as {' or '.join(DENOISER_NAMES)}"
        )
    first = modules[names[0]]
    if all(are_alike(first, modules[name]) for name in names):
        return {names[0]: live_spec(first, pipeline, **asked, call=call)}

    from partitioner.models.stand_ins import StandIns
    from partitioner.models.unweighted import twin_of

    load_plugins()
    sizes, stand_ins = Sizes(**asked), StandIns()
    sources = [live_source(modules[name], pipeline, call) for name in names]
    described = None
    if call is None:
        described = described_spec(sources[0], ARCHITECTURES.get(sources[0].class_name), sizes, first.dtype, first)
    try:
        twin = twin_of(pipeline, stand_ins)
    except Exception as error:  # whatever modules of somebody else's raise when they are copied
        if described is None:
            raise
        return {names[0]: _alone(described, sources[1:], UsageError(first_line(error)))}
    find = _Finder(
        twin, stand_ins, sizes, call or {},
        lambda source: dtype_name(modules[source.part or ""].dtype),
        lambda one, other: are_alike(modules[one.part or ""], modules[other.part or ""]),
    )  # fmt: skip
    return find.specs(sources, described)


def are_alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same class, configuration and parameters, but for these' values."""
    return _make(one) == _make(other)


def _make(module: nn.Module) -> tuple[Any, ...]:
    from partitioner.graph.torch_private.compiled import uncompiled

    module = uncompiled(module)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in module.named_parameters()}
    return type(module), dict(getattr(module, "config", {})), shapes


@dataclass(frozen=True)
class _Finder:
    """Finds out which of a pipeline's modules are denoisers, and how it calls them.

    Attributes:
        pipe: The pipeline of stand-ins.
        stand_ins: What made its modules.
        sizes: What to call it for.
        given: Arguments for its call.
        dtype_of: The dtype of a denoiser's spec.
        alike: Whether one plan does for two denoisers.
    """

    pipe: Any
    stand_ins: StandIns
    sizes: Sizes
    given: Mapping[str, Any]
    dtype_of: Callable[[ModelSource], str]
    alike: Callable[[ModelSource, ModelSource], bool]

    def specs(self, sources: Sequence[ModelSource], described: ModelSpec | None) -> dict[str, ModelSpec]:
        """The specs of those modules that are denoisers.

        Args:
            sources: The first denoiser, and what may be others.
            described: The first one's spec, where a description gave it.

        Raises:
            UsageError: The pipeline cannot be run without weights, and there is no description.
        """
        from partitioner.models.recorded import is_denoiser, record

        first = sources[0]
        assert first.part is not None
        try:
            recording = record(self.pipe, first.part, self.stand_ins, self.sizes, self.given)
        except UsageError as error:
            return {first.part: _alone(described, sources[1:], error)}
        own = recorded_spec(first, recording, self.sizes, self.dtype_of(first), self.pipe)
        found = {first.part: own if described is None else replace(described, beside=own.beside)}
        known = {first.part: first}
        for source in sources[1:]:
            part = source.part or ""
            if not is_denoiser(self.pipe, part, self.stand_ins, recording.call):
                continue
            like = [name for name, other in known.items() if self.alike(source, other)]
            if like:
                found[part] = found[like[0]]
            else:
                recorded = record(self.pipe, part, self.stand_ins, self.sizes, self.given)
                found[part] = recorded_spec(source, recorded, self.sizes, self.dtype_of(source), self.pipe)
                known[part] = source
        return self._told(found)

    def _told(self, found: Mapping[str, ModelSpec]) -> dict[str, ModelSpec]:
        """The specs, none of which has another denoiser beside it; one alone where it is that of all."""
        told = {
            id(spec): replace(spec, beside=tuple(module for module in spec.beside if module.name not in found))
            for spec in found.values()
        }
        specs = {name: told[id(spec)] for name, spec in found.items()}
        return specs if len(told) > 1 else dict(list(specs.items())[:1])


def _alone(described: ModelSpec | None, others: Sequence[ModelSource], error: UsageError) -> ModelSpec:
    """The spec of the one denoiser that is described, with a warning; the error where there is no description."""
    if described is None:
        raise error
    _log.warning(
        "which of %s the pipeline calls at each step beside its %s is not known, because it could not be tried "
        "out (%s); only the latter is planned, and what else there is runs on the driver's device",
        ", ".join(source.part or "" for source in others),
        described.class_name,
        str(error).rstrip("."),
    )
    return described
