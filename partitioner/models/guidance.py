"""guidance_style: how a pipeline asks its denoiser for guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

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
