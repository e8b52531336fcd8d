"""DenoiserCalls: the denoiser calls of one generation, as a pipeline makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

CallArguments = Mapping[str, Any]  # the denoiser's keyword arguments, return_dict=False among them


class DenoiserCalls:
    """Denoiser calls as a pipeline makes them: DDIM's timesteps, and latents on the line from a noise to a picture.

    Both are random. Look-ahead foresees such latents, so that what is timed is a pipe that stays full.
    """

    def __init__(self, inputs: Mapping[str, Any], roles: Mapping[str, str], steps: int) -> None:
        from diffusers import DDIMScheduler

        self.scheduler = DDIMScheduler(clip_sample=False)
        self._inputs, self._steps = dict(inputs), steps
        self._latent, self._timestep = (
            next(name for name, role in roles.items() if role == wanted) for wanted in ("latent", "timestep")
        )
        generator = torch.Generator().manual_seed(0)
        shape = inputs[self._latent].shape
        self._picture, self._noise = (torch.randn(shape, generator=generator) for _ in range(2))

    def start(self) -> list[CallArguments]:
        """The calls of a new trajectory; the scheduler is reset, from which the engine sees that one begins."""
        self.scheduler.set_timesteps(self._steps)
        like = self._inputs[self._timestep]
        return [
            {**self._inputs, self._latent: self._at(timestep), self._timestep: torch.full_like(like, float(timestep))}
            for timestep in self.scheduler.timesteps
        ]

    def _at(self, timestep: torch.Tensor) -> torch.Tensor:
        """The latent of a call."""
        kept: torch.Tensor = self.scheduler.alphas_cumprod[timestep]
        return kept.sqrt() * self._picture + (1 - kept).sqrt() * self._noise
