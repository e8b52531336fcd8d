"""Lessons: what a denoiser is shown of latents, and what it is to say, by what its outputs mean."""

from __future__ import annotations

from typing import Any

import torch


def noise_lesson(
    scheduler: Any, latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(noisy latents, timesteps, target output, weights of the losses), for noise prediction."""
    kept_signal = scheduler.alphas_cumprod
    # Where little signal is left only the prompt tells what to draw, and the loss of the noise hardly does: it counts
    # for more there. The loss of the velocity would count as the square of this.
    weights = kept_signal.rsqrt() / kept_signal.rsqrt().mean()
    noise, timesteps = torch.randn_like(latents), torch.randint(len(kept_signal), (len(latents),))
    kept = kept_signal[timesteps].view(-1, 1, 1, 1)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise, timesteps, noise, weights[timesteps]


def angular_lesson(
    scheduler: Any, latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same for velocity prediction on the noise schedule ("v_prediction")."""
    noise, timesteps = torch.randn_like(latents), torch.randint(len(scheduler.alphas_cumprod), (len(latents),))
    kept = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy, velocity = (kept.sqrt() * a + (1 - kept).sqrt() * b for a, b in ((latents, noise), (noise, -latents)))
    return noisy, timesteps, velocity, torch.ones(len(latents))


def velocity_lesson(
    scheduler: Any, latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same for flow matching: velocity prediction on straight paths, with uniform noise levels."""
    noise, level = torch.randn_like(latents), torch.rand(len(latents))
    timesteps = level * scheduler.config.num_train_timesteps
    level = level.view(-1, 1, 1, 1)
    return (1 - level) * latents + level * noise, timesteps, noise - latents, torch.ones(len(latents))


LESSONS = {
    "unet": noise_lesson,
    "dit": noise_lesson,
    "mmdit": velocity_lesson,
    "xl-unet": angular_lesson,
    "linear-dit": velocity_lesson,
}
