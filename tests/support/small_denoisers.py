"""A UNet and a transformer of real architectures, small, with the inputs of their calls and a sampler's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from tools.denoisers import Denoiser, seeded


def unet() -> Denoiser:
    with seeded(0) as generator:
        module = UNet2DConditionModel(
            sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=8,
        ).eval()  # fmt: skip
    return module, *_call("sample", 32, generator)


def transformer() -> Denoiser:
    with seeded(0) as generator:
        module = PixArtTransformer2DModel(
            sample_size=16, num_attention_heads=4, attention_head_dim=8, num_layers=4, cross_attention_dim=32,
            caption_channels=16, use_additional_conditions=False,
        ).eval()  # fmt: skip
    inputs, roles = _call("hidden_states", 16, generator)
    return module, {**inputs, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}, roles


SMALL: dict[str, Callable[[], Denoiser]] = {"unet": unet, "transformer": transformer}


def _call(sample: str, width: int, generator: torch.Generator) -> tuple[dict[str, Any], dict[str, str]]:
    inputs = {
        sample: torch.randn(2, 4, 16, 16, generator=generator),
        "timestep": torch.tensor([501, 501]),
        "encoder_hidden_states": torch.randn(2, 12, width, generator=generator),
        "return_dict": False,
    }
    return inputs, {sample: "latent", "timestep": "timestep", "encoder_hidden_states": "prompt"}


def scheduler_of(steps: int) -> Any:
    made = DDIMScheduler(clip_sample=False)
    made.set_timesteps(steps)
    return made


def sample(denoiser: nn.Module | Callable[..., Any], inputs: dict[str, Any], scheduler: Any) -> torch.Tensor:
    """The last latent of a loop of one's own."""
    name = next(iter(inputs))
    latent: torch.Tensor = inputs[name]
    with torch.no_grad():
        for t in scheduler.timesteps:
            noise = denoiser(**{**inputs, name: latent, "timestep": t.expand(2)})[0][:, :4]
            latent = scheduler.step(noise, t, latent).prev_sample
    return latent
