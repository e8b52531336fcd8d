"""The guidance scale of a pipeline: its default, read from the signature of its call, and what of it is in effect."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from partitioner.errors import UsageError
from partitioner.limits import MOST_SCALE, check_real
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


def check_scale(scale: float) -> None:
    """UsageError for what is no guidance scale.

    >>> check_scale(float("nan"))
    Traceback (most recent call last):
    partitioner.errors.UsageError: guidance_scale is nan; expected a number from 0 to 1000
    """
    check_real("guidance_scale", scale, 0, MOST_SCALE)


def runs_guided(guidance: bool, style: GuidanceStyle | None, scale: float | None) -> bool:
    """Whether a pipeline runs with guidance, by what a user says.

    Args:
        guidance: Whether it is not said to run without.
        style: How guidance is said to be done; None where nothing is said.
        scale: What it is called with; None where nothing is said.

    Raises:
        UsageError: That contradicts itself, or the scale is none.

    >>> runs_guided(True, None, 7.5), runs_guided(True, None, 1.0)
    (True, False)
    """
    if scale is None:
        return guidance
    check_scale(scale)
    if scale > 1 and (not guidance or style == "none"):
        without = "--guidance-style none" if guidance else "--no-guidance"
        raise UsageError(f"{without} and --guidance-scale {scale:g} contradict each other; leave one of them out")
    return guidance and (scale > 1 or style is not None)


def scale_remarks(name: str, style: GuidanceStyle, scale: float | None) -> list[str]:
    """What one should know of a guidance scale that one has asked for, as sentences without a full stop.

    Args:
        name: Of the denoiser.
        style: How its pipeline does guidance when it is called so.
        scale: What it is called with; None where nothing is said.

    Raises:
        UsageError: There is no guidance that it could be the scale of.
    """
    if scale is None:
        return []
    if style == "embedded":
        return [f"{name} takes the guidance scale as an input of one call; its quality is looked up at a scale of 1"]
    if style == "none" and scale > 1:
        raise UsageError(
            f"--guidance-scale {scale:g}: {name} does no guidance that is known of; leave it out, or say with "
            "--guidance-style how its pipeline does guidance"
        )
    return [f"at a guidance scale of {scale:g} pipelines leave guidance out"] if scale <= 1 else []
