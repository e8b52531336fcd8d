"""Sizes: what a denoiser's calls are to be made for."""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.errors import UsageError
from partitioner.limits import MOST_BATCH, MOST_FRAMES, MOST_PIXELS, check_whole
from partitioner.models.guidance import GUIDANCE_STYLES, GuidanceStyle

MOST = {"height": MOST_PIXELS, "width": MOST_PIXELS, "frames": MOST_FRAMES, "batch": MOST_BATCH}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the user asks for; None for the pipeline's own.

    Attributes:
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        frames: Of the video.
        batch: Images or videos per prompt.
        guidance: Whether classifier-free guidance is used.
        guidance_style: How it is done, see ``partitioner.models.guidance``.

    Raises:
        UsageError: A size is out of range, there is no such style, or it contradicts ``guidance``.

    >>> Sizes(height=0)
    Traceback (most recent call last):
        ...
    partitioner.errors.UsageError: height is 0; expected a whole number from 1 to 65536
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    batch: int = 1
    guidance: bool = True
    guidance_style: GuidanceStyle | None = None

    def __post_init__(self) -> None:
        for option in MOST:
            value = getattr(self, option)
            if value is not None:
                check_whole(option, value, 1, MOST[option])
        style = self.guidance_style
        if style is not None and style not in GUIDANCE_STYLES:
            raise UsageError(f"--guidance-style is {style}; expected {', '.join(GUIDANCE_STYLES[:-1])} or none")
        if not self.guidance and style not in (None, "none"):
            raise UsageError(f"--no-guidance and --guidance-style {style} contradict each other; leave one of them out")

    @property
    def guided(self) -> bool:
        """Whether the pipeline is run with guidance that calls or rows of its own are made for."""
        return self.guidance and self.guidance_style != "none"
