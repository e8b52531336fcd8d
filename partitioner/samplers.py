"""What is known of diffusers' samplers by the names of their classes."""

from __future__ import annotations

_STOCHASTIC = ("Ancestral", "SDE", "DDPM", "LCM", "TCD", "ConsistencyModel", "VQDiffusion")


def adds_noise(scheduler: str) -> bool:
    """Whether a sampler adds fresh noise in every step, so that its later latents cannot be foreseen."""
    return any(word in scheduler for word in _STOCHASTIC)
