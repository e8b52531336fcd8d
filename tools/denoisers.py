"""Small denoisers of real architectures with random weights, for benches, recorded profiles and tests.

Each of DENOISERS takes at least 150 ms for one call on one CPU thread in float32, so that what a step costs besides its
arithmetic does not decide; small_like takes some 20 ms, so that messages weigh. A denoiser is (module, example inputs,
roles), as partitioner.trace takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Denoiser = tuple[nn.Module, dict[str, Any], dict[str, str]]


def sd15_like(seed: int = 0) -> Denoiser:
    """A UNet2DConditionModel of Stable Diffusion 1.5's topology: 96 to 384 channels, 2 x 4 x 32 x 32 latents."""
    from diffusers import UNet2DConditionModel

    with seeded(seed) as generator:
        module = UNet2DConditionModel(
            sample_size=32, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(96, 192, 384, 384)
        ).eval()
    inputs = {
        "sample": torch.randn(2, 4, 32, 32, generator=generator),
        "timestep": torch.tensor(501.0),
        "encoder_hidden_states": torch.randn(2, 77, 768, generator=generator),
        "return_dict": False,
    }
    return module, inputs, {"sample": "latent", "timestep": "timestep", "encoder_hidden_states": "prompt"}


def svd_like(seed: int = 0) -> Denoiser:
    """A UNetSpatioTemporalConditionModel of SVD's topology: 64 to 192 channels, 4 frames of 16 x 16."""
    from diffusers import UNetSpatioTemporalConditionModel

    with seeded(seed) as generator:
        module = UNetSpatioTemporalConditionModel(
            sample_size=16,
            block_out_channels=(64, 128, 192, 192),
            num_attention_heads=(2, 4, 6, 6),
            addition_time_embed_dim=64,
            projection_class_embeddings_input_dim=192,
            cross_attention_dim=256,
            num_frames=4,
        ).eval()
    inputs = {
        "sample": torch.randn(2, 4, 8, 16, 16, generator=generator),
        "timestep": torch.tensor(1.5),
        "encoder_hidden_states": torch.randn(2, 1, 256, generator=generator),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]] * 2),
        "return_dict": False,
    }
    roles = {"sample": "latent", "timestep": "timestep", "encoder_hidden_states": "prompt", "added_time_ids": "prompt"}
    return module, inputs, roles


def dit_like(seed: int = 0) -> Denoiser:
    """A PixArtTransformer2DModel: 12 blocks of width 384, 2 x 4 x 32 x 32 latents, so 256 tokens."""
    from diffusers import PixArtTransformer2DModel

    with seeded(seed) as generator:
        module = PixArtTransformer2DModel(
            sample_size=32,
            num_attention_heads=6,
            attention_head_dim=64,
            num_layers=12,
            cross_attention_dim=384,
            caption_channels=256,
            use_additional_conditions=False,
        ).eval()
    inputs = {
        "hidden_states": torch.randn(2, 4, 32, 32, generator=generator),
        "timestep": torch.tensor([501.0, 501.0]),
        "encoder_hidden_states": torch.randn(2, 77, 256, generator=generator),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }
    return module, inputs, {"hidden_states": "latent", "timestep": "timestep", "encoder_hidden_states": "prompt"}


def small_like(seed: int = 0) -> Denoiser:
    """A UNet2DConditionModel of two levels: 32 and 64 channels, 2 x 4 x 16 x 16 latents."""
    from diffusers import UNet2DConditionModel

    with seeded(seed) as generator:
        module = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=64,
        ).eval()
    inputs = {
        "sample": torch.randn(2, 4, 16, 16, generator=generator),
        "timestep": torch.tensor(501.0),
        "encoder_hidden_states": torch.randn(2, 8, 64, generator=generator),
        "return_dict": False,
    }
    return module, inputs, {"sample": "latent", "timestep": "timestep", "encoder_hidden_states": "prompt"}


DENOISERS: dict[str, Callable[..., Denoiser]] = {"sd15-like": sd15_like, "svd-like": svd_like, "dit-like": dit_like}


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Random weights made inside come from the seed, and the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)
