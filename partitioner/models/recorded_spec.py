"""recorded_spec: the spec of a denoiser that follows from the calls that its pipeline was seen to make."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError
from partitioner.models.build import build_denoiser
from partitioner.models.call_rows import CallRows, RowPaths, row_paths
from partitioner.models.guidance import asked_style
from partitioner.models.inputs import Inputs
from partitioner.models.sizes import Sizes
from partitioner.models.source import ModelSource
from partitioner.models.spec import ModelSpec, SteppedModule

if TYPE_CHECKING:
    from partitioner.models.recorded import Recording

RECORDED_DTYPE = "bfloat16"  # of a denoiser that no description names another for


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
        scheduler=source.scheduler()[0],
        scheduler_config=source.scheduler()[1],
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
