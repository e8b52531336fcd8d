"""DenoiserCalls: the denoiser calls of one generation, as a pipeline makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

CallArguments = Mapping[str, Any]  # the denoiser's keyword arguments, return_dict=False among them


class DenoiserCalls:
    """Denoiser calls as a pipeline makes them: the timesteps of DDIM, and a random latent in every call."""

    def __init__(self, inputs: Mapping[str, Any], roles: Mapping[str, str], steps: int) -> None:
        from diffusers import DDIMScheduler

        self.scheduler = DDIMScheduler()
        self._inputs, self._steps = dict(inputs), steps
        self._latent, self._timestep = (
            next(name for name, role in roles.items() if role == wanted) for wanted in ("latent", "timestep")
        )
        generator = torch.Generator().manual_seed(0)
        self._latents = [torch.randn(inputs[self._latent].shape, generator=generator) for _ in range(steps)]

    def start(self) -> list[CallArguments]:
        """The calls of a new trajectory; the scheduler is reset, from which the engine sees that one begins."""
        self.scheduler.set_timesteps(self._steps)
        like = self._inputs[self._timestep]
        return [
            {**self._inputs, self._latent: latent, self._timestep: torch.full_like(like, float(timestep))}
            for latent, timestep in zip(self._latents, self.scheduler.timesteps, strict=True)
        ]
