"""The registry of architectures: how the denoisers of one class are called.

To add one, write a function that gets a Request and returns the arguments of one denoiser call:

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
    """What is to be traced. height and width in pixels, frames of the video; None: as the pipeline does by default.

    batch: images or videos per call. rows: batch, twice that where guidance is batched with it.
    config, pipeline, vae: the configurations of the denoiser (with its class's defaults), of its pipeline
    (model_index.json) and of the pipeline's VAE; the last two are empty where they are not known.
    """

    height: int | None
    width: int | None
    frames: int | None
    batch: int
    rows: int
    config: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel, in each direction."""
        if "scale_factor_spatial" in self.vae:
            return int(self.vae["scale_factor_spatial"])
        return 2 ** (len(self.vae["block_out_channels"]) - 1) if "block_out_channels" in self.vae else 8

    def pixels(self, default: tuple[int, int], multiple: int) -> tuple[int, int]:
        """(height, width) in pixels; UsageError unless both are multiples of ``multiple``."""
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
        """(height, width) of the latent: by default config's sample_size; patch: what both must be multiples of."""
        factor = self.vae_factor
        if default is None:
            size = self.config["sample_size"]
            side = (size, size) if isinstance(size, int) else size
            default = (side[0] * factor, side[1] * factor)
        height, width = self.pixels(default, factor * patch)
        return height // factor, width // factor


@dataclass(frozen=True, slots=True)
class Architecture:
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
    """Decorate the function that gives the arguments of a denoiser call, and so add an architecture.

    name: a name of your own together with ``build``, which makes the denoiser; or the name of a diffusers class
    without it, and then folders, hub ids and configurations of that class are understood.
    batches_guidance: whether the pipeline calls it once per step with both guidance halves in one batch.
    video: whether it has frames. dtype: what it is traced in unless asked otherwise.
    """

    def register(describe: Callable[[Request], Inputs]) -> Callable[[Request], Inputs]:
        if name in BUILT_IN or (name in ARCHITECTURES and ARCHITECTURES[name].describe is not describe):
            raise UsageError(f"a model named {name!r} is registered already; choose another name")
        ARCHITECTURES[name] = Architecture(describe, build, batches_guidance, video, dtype)
        return describe

    return register


def model_names() -> tuple[str, ...]:
    """The names that model_spec knows: built-in ones, then registered ones that build themselves."""
    return (*BUILT_IN, *(name for name, known in ARCHITECTURES.items() if known.build is not None))
