"""A toy pipeline: draws a latent, and moves it step by step with what the toy denoiser says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.support.engines import WIDTH

PROMPT = torch.linspace(-1, 1, 12).reshape(2, 6)


class ToyScheduler:
    """As diffusers' are seen: set_timesteps makes a new tensor."""

    def __init__(self) -> None:
        self.timesteps = torch.empty(0)

    def set_timesteps(self, count: int) -> None:
        self.timesteps = torch.linspace(900, 100, count)

    def step(self, output: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        return latent - 0.2 * output


class ToyPipeline:
    """As a pipeline of diffusers, for as far as an engine sees it.

    Args:
        unet: what it calls: the denoiser, or an engine in its place.
        denoiser: is among its attributes, as an engine's denoiser is in its pipeline.
    """

    def __init__(self, unet: Callable[..., Any], denoiser: torch.nn.Module | None = None) -> None:
        self.call, self.unet, self.scheduler = unet, denoiser, ToyScheduler()

    def __call__(self, seed: int, steps: int = 5, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
        """The last latent."""
        return list(self.latents(seed, steps, prompt))[-1]

    def latents(self, seed: int, steps: int = 5, prompt: torch.Tensor = PROMPT) -> Iterator[torch.Tensor]:
        """Every latent in turn: one call of the denoiser between each two."""
        self.scheduler.set_timesteps(steps)
        yield from sampled(self.call, self.scheduler, seed, prompt)


def sampled(
    unet: Callable[..., Any], scheduler: ToyScheduler, seed: int, prompt: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Every latent of a trajectory in turn, of a loop that is no pipeline's."""
    latent = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))
    yield latent
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            latent = scheduler.step(unet(x=latent, t=timestep, context=prompt)[0], latent)
        yield latent
