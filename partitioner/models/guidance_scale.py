"""The guidance scale of a pipeline: its default, read from the signature of its call, and what of it is in effect."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from partitioner.models.guidance import GuidanceStyle

# What calls take it as. Where there is the first, a second half is computed for that one, and what is called
# guidance_scale is an input of the denoiser.
_ARGUMENTS = ("true_cfg_scale", "guidance_scale", "max_guidance_scale", "prior_guidance_scale")


def scale_of_call(call: Callable[..., Any], given: Mapping[str, Any] | None = None) -> float | None:
    """The guidance scale that a pipeline's call has.

    Args:
        call: The call, whose signature names and defaults are looked at.
        given: Arguments that it is called with.

    Returns:
        What is given, else the default; None where it takes none, or has no number for it.

    >>> from diffusers import FluxPipeline, StableDiffusionPipeline, StableVideoDiffusionPipeline
    >>> scale_of_call(StableDiffusionPipeline.__call__), scale_of_call(StableVideoDiffusionPipeline.__call__)
    (7.5, 3.0)
    >>> scale_of_call(FluxPipeline.__call__, {"guidance_scale": 5.0, "true_cfg_scale": 4.0})  # the former: an input
    4.0
    """
    try:
        taken = inspect.signature(call).parameters
    except (TypeError, ValueError):  # a class of diffusers that lacks another package, say
        return None
    name = next((name for name in _ARGUMENTS if name in taken), None)
    value = None if name is None else (given or {}).get(name, taken[name].default)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def live_scale(pipeline: Any, given: Mapping[str, Any] | None = None) -> float | None:
    """The guidance scale of a pipeline in memory: that of its guider where it has one, else of its call.

    Args:
        pipeline: Of diffusers.
        given: Arguments that it will be called with.
    """
    for part in vars(pipeline).values():
        if hasattr(part, "prepare_inputs") and isinstance(getattr(part, "guidance_scale", None), (int, float)):
            return float(part.guidance_scale)
    return scale_of_call(type(pipeline).__call__, given)


def scale_in_effect(style: GuidanceStyle | None, scale: float | None) -> float | None:
    """The scale that a run can be compared by: 1 where no second half is computed.

    Pipelines of diffusers leave guidance out at a scale of 1 or less.

    Args:
        style: How guidance is done; "embedded" takes the scale as an input of one call, and computes no second half.
        scale: Of the pipeline; None where it is not known.

    >>> scale_in_effect("batch", 7.5), scale_in_effect("embedded", 3.5), scale_in_effect("two-calls", 0.0)
    (7.5, 1.0, 1.0)
    """
    if style in ("none", "embedded"):
        return 1.0
    return None if scale is None else max(1.0, scale)
