"""The registry of architectures: the arguments that denoisers of one class are called with.

To add one, write a function that takes a Request and returns the arguments of one denoiser call:

    @register_model("tiny-dit", build=TinyDiT)
    def _tiny_dit(request: Request) -> Inputs:
        return {
            "x": latent(request.rows, 4, 32, 32),
            "t": timestep(request.rows),
            "context": prompt(request.rows, 16, 256),
        }
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError
from partitioner.models.inputs import Inputs
from partitioner.models.source import BUILT_IN

if TYPE_CHECKING:
    from torch import nn


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

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel, in each direction."""
        if "scale_factor_spatial" in self.vae:
            return int(self.vae["scale_factor_spatial"])
        return 2 ** (len(self.vae["block_out_channels"]) - 1) if "block_out_channels" in self.vae else 8

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

    def latent_pixels(self, default: tuple[int, int] | None = None, patch: int = 1) -> tuple[int, int]:
        """Height and width of the latent.

        Args:
            default: Height and width of the images in pixels unless they were asked for; None for those that config's
                sample_size says.
            patch: What height and width of the latent must be multiples of.

        Raises:
            UsageError: One of them is not.
        """
        factor = self.vae_factor
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
    batches_guidance: bool
    video: bool
    dtype: str


ARCHITECTURES: dict[str, Architecture] = {}


def register_model(
    name: str,
    *,
    build: Callable[[], nn.Module] | None = None,
    batches_guidance: bool = True,
    video: bool = False,
    dtype: str = "float16",
) -> Callable[[Callable[[Request], Inputs]], Callable[[Request], Inputs]]:
    """Add an architecture, by decorating the function that gives the arguments of a denoiser call.

    Args:
        name: A name of your own together with ``build``; or the name of a diffusers class without it, and then folders
            and hub ids that hold a denoiser of that class are understood.
        build: Makes the denoiser.
        batches_guidance: Whether the pipeline calls it once per step with both halves of guidance in one batch.
        video: Whether it has frames.
        dtype: What it is traced in unless another dtype is asked for.

    Raises:
        UsageError: The name is taken.

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
        if name in BUILT_IN or (name in ARCHITECTURES and ARCHITECTURES[name].describe is not describe):
            raise UsageError(f"a model named {name!r} is registered already; choose another name")
        ARCHITECTURES[name] = Architecture(describe, build, batches_guidance, video, dtype)
        return describe

    return register


def model_names() -> tuple[str, ...]:
    """The names that model_spec takes: the built-in ones, then those registered with a ``build`` function."""
    return (*BUILT_IN, *(name for name, known in ARCHITECTURES.items() if known.build is not None))
