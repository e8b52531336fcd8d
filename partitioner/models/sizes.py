"""Sizes: what a denoiser's calls are to be made for."""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the user asks for; None for the pipeline's own.

    Attributes:
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        frames: Of the video.
        batch: Images or videos per prompt.
        guidance: Whether classifier-free guidance is used.

    Raises:
        UsageError: A size is less than 1.

    >>> Sizes(height=0)
    Traceback (most recent call last):
        ...
    partitioner.errors.UsageError: --height is 0; expected 1 or more
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    batch: int = 1
    guidance: bool = True

    def __post_init__(self) -> None:
        for option in ("height", "width", "frames", "batch"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"--{option} is {value}; expected 1 or more")
