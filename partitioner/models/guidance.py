"""guidance_style: how a pipeline asks its denoiser for guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from partitioner.errors import UsageError

GuidanceStyle = Literal["batch", "two-calls", "embedded", "none"]
GUIDANCE_STYLES: tuple[GuidanceStyle, ...] = get_args(GuidanceStyle)


def guidance_style(
    registered: GuidanceStyle, config: Mapping[str, Any], pipeline: Mapping[str, Any], guidance: bool = True
) -> GuidanceStyle:
    """How guidance is done with this denoiser.

    batch: One call holds both halves, with and without the prompt. two-calls: Each half is a call of its own.
    embedded: The scale is an input of a denoiser that was distilled so. none: There is no guidance.

    Args:
        registered: What the denoiser's class is registered with.
        config: Of the denoiser.
        pipeline: Configuration of its pipeline (model_index.json); empty where it is not known.
        guidance: Whether the pipeline is run with guidance.

    >>> guidance_style("none", {"guidance_embeds": True}, {})
    'embedded'
    >>> guidance_style("two-calls", {"guidance_embeds": False}, {"is_distilled": True})
    'none'
    """
    if config.get("guidance_embeds") or config.get("time_cond_proj_dim") is not None:
        return "embedded"
    return registered if guidance and not pipeline.get("is_distilled") else "none"


def asked_style(name: str, known: GuidanceStyle, asked: GuidanceStyle | None) -> GuidanceStyle:
    """The style that a user asks for, where a denoiser's calls can be of it.

    Any pipeline may call its denoiser once for each half (a guider does, or a loop of one's own), or do without
    guidance. That a call holds both halves, or takes the scale, is the pipeline's own way or not.

    Args:
        name: Of the denoiser.
        known: What its pipeline does when it is run with guidance.
        asked: None for what is known.

    Raises:
        UsageError: Its calls cannot be of that style.

    >>> asked_style("flux", "embedded", "two-calls")
    'two-calls'
    >>> asked_style("wan", "two-calls", "batch")
    Traceback (most recent call last):
        ...
    partitioner.errors.UsageError: --guidance-style batch: the calls of wan hold no two halves; its style is two-calls
    """
    if asked is None or asked == known or asked == "two-calls" or (asked == "none" and known != "embedded"):
        return asked or known
    why = {
        "batch": f"the calls of {name} hold no two halves",
        "embedded": f"{name} takes no scale of guidance as an input",
        "none": f"{name} takes the scale of guidance as an input of every call",
    }[asked]
    raise UsageError(f"--guidance-style {asked}: {why}; its style is {known}")


def guider_style(parts: Mapping[str, Any]) -> GuidanceStyle | None:
    """The style of a pipeline that leaves guidance to one of its parts, a guider: a call for each condition.

    Args:
        parts: Of the pipeline, by name.

    Returns:
        None where there is no guider, or one that has a single condition.

    >>> from diffusers import ClassifierFreeGuidance
    >>> guider_style({"guider": ClassifierFreeGuidance(7.0)}), guider_style({"guider": ClassifierFreeGuidance(1.0)})
    ('two-calls', None)
    """
    guiders = [part for part in parts.values() if hasattr(part, "prepare_inputs") and hasattr(part, "num_conditions")]
    return "two-calls" if any(guider.num_conditions > 1 for guider in guiders) else None
