"""The registry of architectures: the arguments that denoisers of one class are called with.

To add one, write a function that takes a Request and returns the arguments of one denoiser call:

    @register_model("tiny-dit", build=TinyDiT)
    def _tiny_dit(request: Request) -> Inputs:
        return {
            "x": latent(request.rows, 4, 32, 32),
            "t": timestep(request.rows),
            "context": prompt(request.rows, 16, 256),
        }

An installed package whose entry points name such a module in the group ``partition_model.models`` adds it for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError, first_line
from partitioner.models.built_in import BUILT_IN
from partitioner.models.guidance import GUIDANCE_STYLES, GuidanceStyle
from partitioner.models.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn


class NotDescribed(UsageError):
    """A description does not know how denoisers of such a configuration are called; the pipeline may show it."""


@dataclass(frozen=True, slots=True)
class Request:
    """The sizes that a denoiser is to be traced for, and its configuration.

    Attributes:
        height: Of the images, in pixels; None for the pipeline's default. So are width and frames.
        width: Of the images, in pixels.
        frames: Of the video.
        batch: Images or videos per call.
        rows: Rows of a call: batch, or twice that where both halves of guidance are in one batch.
        config: Configuration of the denoiser, with its class's defaults.
        pipeline: Configuration of its pipeline (model_index.json); empty where it is not known, as is vae.
        vae: Configuration of the pipeline's VAE.
        denoiser: The module, where it is in memory; something may have been added to it.
    """

    height: int | None
    width: int | None
    frames: int | None
    batch: int
    rows: int
    config: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    denoiser: Any = None

    def vae_factor(self, default: int = 8) -> int:
        """Pixels per latent pixel, in each direction.

        Args:
            default: What it is where the VAE is not known, or does not say.
        """
        for name in ("scale_factor_spatial", "spatial_compression_ratio"):
            if self.vae.get(name):
                return int(self.vae[name])
        for name, less in (("encoder_block_out_channels", 1), ("block_out_channels", 1), ("temperal_downsample", 0)):
            if self.vae.get(name):
                return int(2 ** (len(self.vae[name]) - less))
        return default

    def latent_frames(self, default: int, factor: int = 4) -> int:
        """Frames of the latent: the first of a video is one of its own, then every few make one.

        Args:
            default: Of the video, unless they were asked for.
            factor: How many make one, where the VAE is not known, or does not say.

        Raises:
            UsageError: The VAE makes no such number of frames.
        """
        frames = default if self.frames is None else self.frames
        names = ("scale_factor_temporal", "temporal_compression_ratio")
        factor = next((int(self.vae[name]) for name in names if self.vae.get(name)), factor)
        if frames % factor != 1 % factor:
            near = (frames - 1) // factor * factor + 1
            raise UsageError(
                f"--frames {frames}: this model makes {factor} x n + 1 frames; use {near} or {near + factor}"
            )
        return (frames - 1) // factor + 1

    def pixels(self, default: tuple[int, int], multiple: int) -> tuple[int, int]:
        """Height and width of the images, in pixels.

        Args:
            default: What they are unless they were asked for.
            multiple: What both must be multiples of.

        Raises:
            UsageError: One of them is not.
        """
        height = default[0] if self.height is None else self.height
        width = default[1] if self.width is None else self.width
        for option, value in (("--height", height), ("--width", width)):
            if value % multiple:
                below, above = value - value % multiple, value - value % multiple + multiple
                near = f"{below} or {above}" if below else str(above)
                raise UsageError(
                    f"{option} {value} is not a multiple of {multiple}, which this model needs: use {near}"
                )
        return height, width

    def latent_pixels(self, default: tuple[int, int] | None = None, patch: int = 1, factor: int = 8) -> tuple[int, int]:
        """Height and width of the latent.

        Args:
            default: Height and width of the images in pixels unless they were asked for; None for those that config's
                sample_size says.
            patch: What height and width of the latent must be multiples of.
            factor: Pixels per latent pixel, where the VAE is not known, or does not say.

        Raises:
            UsageError: One of them is not.
        """
        factor = self.vae_factor(factor)
        if default is None:
            size = self.config["sample_size"]
            side = (size, size) if isinstance(size, int) else size
            default = (side[0] * factor, side[1] * factor)
        height, width = self.pixels(default, factor * patch)
        return height // factor, width // factor


@dataclass(frozen=True, slots=True)
class Architecture:
    """What register_model was told of an architecture."""

    describe: Callable[[Request], Inputs]
    build: Callable[[], nn.Module] | None
    guidance_style: GuidanceStyle
    video: bool
    dtype: str
    pipelines: tuple[str, ...] = ()


ARCHITECTURES: dict[str, Architecture] = {}
GROUP = "partition_model.models"

_log = logging.getLogger("partitioner.models")


def register_model(
    name: str,
    *,
    build: Callable[[], nn.Module] | None = None,
    guidance_style: GuidanceStyle = "batch",
    video: bool = False,
    dtype: str = "float16",
    pipelines: Collection[str] = (),
) -> Callable[[Callable[[Request], Inputs]], Callable[[Request], Inputs]]:
    """Add an architecture, by decorating the function that gives the arguments of a denoiser call.

    Args:
        name: A name of your own together with ``build``; or the name of a diffusers class without it, and then folders
            and hub ids that hold a denoiser of that class are understood.
        build: Makes the denoiser.
        guidance_style: "batch" where the pipeline calls it once per step with both halves of guidance in one batch,
            "two-calls" where each half is a call of its own, "none" where there is no guidance. A configuration with
            ``guidance_embeds`` or ``time_cond_proj_dim`` makes it "embedded": the scale is an input.
        video: Whether it has frames.
        dtype: What it is traced in unless another dtype is asked for.
        pipelines: Classes of the pipelines that call it so; empty where all do.

    Raises:
        UsageError: The name is taken, or there is no such guidance style.

    >>> import torch
    >>> from partitioner.models import latent, model_spec, timestep
    >>> class Shift(torch.nn.Module):
    ...     def forward(self, x, t):
    ...         return x + t
    >>> @register_model("example-shift", build=Shift, dtype="float32")
    ... def _shift(request):
    ...     height, width = request.pixels(default=(32, 32), multiple=8)
    ...     return {"x": latent(request.rows, 3, height, width), "t": timestep()}
    >>> model_spec("example-shift", height=64).inputs["x"].shape
    (2, 3, 64, 32)
    """

    def register(describe: Callable[[Request], Inputs]) -> Callable[[Request], Inputs]:
        known = ARCHITECTURES.get(name)
        # of the same name is the same function, once more: a notebook's cell, or a module, is run again
        if name in BUILT_IN or (known is not None and _place_of(known.describe) != _place_of(describe)):
            raise UsageError(f"a model named {name!r} is registered already; choose another name")
        if guidance_style not in GUIDANCE_STYLES:
            raise UsageError(f"guidance_style is {guidance_style!r}; expected one of {', '.join(GUIDANCE_STYLES)}")
        ARCHITECTURES[name] = Architecture(describe, build, guidance_style, video, dtype, tuple(pipelines))
        return describe

    return register


def _place_of(describe: Callable[[Request], Inputs]) -> tuple[str, str]:
    return describe.__module__, describe.__qualname__


def model_names() -> tuple[str, ...]:
    """The names that model_spec takes: the built-in ones, then those registered with a ``build`` function."""
    load_plugins()
    return (*BUILT_IN, *(name for name, known in ARCHITECTURES.items() if known.build is not None))


def nearest_names(name: str) -> tuple[str, ...]:
    """The three names that are most like it, the most like one first.

    >>> nearest_names("FLUX-2")[:2]
    ('flux2', 'flux')
    """

    def plain(text: str) -> str:
        return "".join(filter(str.isalnum, text.lower()))

    def likeness(known: str) -> float:
        one, other = plain(name), plain(known)
        return SequenceMatcher(None, one, other).ratio() + (one in other or other in one)

    return tuple(sorted(model_names(), key=likeness, reverse=True)[:3])


@cache
def load_plugins() -> None:
    """Import what installed packages name in the entry-point group ``partition_model.models``, once.

    Each entry is a module that registers models when it is imported. One that fails is warned about and left out.
    """
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        try:
            entry.load()
        except Exception as error:  # whatever other people's modules raise
            package = entry.dist.name if entry.dist is not None else "an installed package"
            _log.warning(
                "the models that %s registers (%s = %s in its entry points) are left out: %s: %s; mend or uninstall it",
                package,
                entry.name,
                entry.value,
                type(error).__name__,
                first_line(error),
            )
