"""GUIDED_PIPELINES: pipelines of diffusers that call their denoiser twice at each timestep, with random weights.

Prompts are given as embeddings and latents are the output, so that the denoiser takes nearly all of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tools.denoisers import seeded
from tools.modular_pipelines import modular_pipeline
from tools.support.tiny_denoiser import randomise

HEAD = 64  # channels of an attention head
ROPE = (16, 24, 24)  # those of each axis of positions
TEXT = 48  # channels of a token of an encoded prompt
TOKENS = 32  # of an encoded prompt


@dataclass(frozen=True)
class DenoiserSize:
    """Of a denoiser.

    Attributes:
        blocks: how many it has; where it has two kinds of them, of the first; a UNet has four times as many.
        heads: of each attention.
        side: of its input, in tokens.
    """

    blocks: int
    heads: int
    side: int

    @property
    def width(self) -> int:
        """Channels of a token."""
        return HEAD * self.heads


TINY = DenoiserSize(blocks=1, heads=1, side=4)


@dataclass(frozen=True)
class GuidedPipeline:
    """A pipeline with guidance in two calls.

    Attributes:
        denoiser: makes its denoiser.
        make: makes the rest of it.
        size: of the denoiser, such that one call takes 100 to 250 ms on one CPU thread.
        call: the arguments of a call, but for the number of steps, the generator and the picture's size.
        pixels: of a picture's side, per token.
        contexts: whether each call has a cache context.
    """

    denoiser: Callable[[DenoiserSize], Any]
    make: Callable[[Any], Any]
    size: DenoiserSize
    call: Mapping[str, Any]
    pixels: int = 16
    contexts: bool = True

    def pipe(self, size: DenoiserSize) -> Any:
        """The pipeline, always with the same weights, without its progress bar."""
        with seeded(0):
            denoiser = self.denoiser(size).eval()
            randomise(denoiser)
        pipe = self.make(denoiser)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def arguments(self, size: DenoiserSize) -> dict[str, Any]:
        """The arguments of a call, but for the number of steps and the generator."""
        side = self.pixels * size.side
        return {**self.call, "height": side, "width": side}

    def run(self, pipe: Any, size: DenoiserSize, steps: int) -> torch.Tensor:
        """The latents of a generation of so many steps, always the same."""
        given = {**self.arguments(size), "num_inference_steps": steps, "generator": torch.Generator().manual_seed(0)}
        if hasattr(pipe, "blocks"):  # a modular pipeline
            made: torch.Tensor = pipe(**given, output="latents")
        else:
            made = pipe(**given, output_type="latent", return_dict=False)[0]
        return made


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _both(name: str, *shape: int) -> dict[str, torch.Tensor]:
    """An encoded prompt and its negative."""
    return {name: _random(*shape), f"negative_{name}": _random(*shape, seed=1)}


def _masks(name: str, tokens: int = TOKENS, dtype: torch.dtype = torch.int64) -> dict[str, torch.Tensor]:
    """The masks of an encoded prompt and of its negative, of which every token counts."""
    return {prefix + name: torch.ones(1, tokens, dtype=dtype) for prefix in ("", "negative_")}


_TEXT = _both("prompt_embeds", 1, TOKENS, TEXT)


def _flow() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False)


def _wan(size: DenoiserSize) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=size.heads, attention_head_dim=HEAD, text_dim=TEXT, ffn_dim=4 * size.width,
        num_layers=size.blocks,
    )  # fmt: skip


def _wan_pipeline(transformer: Any) -> Any:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    sampler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return WanPipeline(None, None, None, sampler, transformer)


def _qwen(size: DenoiserSize) -> Any:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        num_layers=size.blocks, num_attention_heads=size.heads, attention_head_dim=HEAD, joint_attention_dim=TEXT,
        axes_dims_rope=ROPE,
    )  # fmt: skip


def _qwen_pipeline(transformer: Any) -> Any:
    from diffusers import QwenImagePipeline

    return QwenImagePipeline(_flow(), None, None, None, transformer)


def _krea(size: DenoiserSize) -> Any:
    from diffusers import Krea2Transformer2DModel

    return Krea2Transformer2DModel(
        num_layers=size.blocks, num_attention_heads=size.heads, num_key_value_heads=size.heads,
        attention_head_dim=HEAD, intermediate_size=4 * size.width, timestep_embed_dim=HEAD, text_hidden_dim=TEXT,
        num_text_layers=3, text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=2 * TEXT,
        axes_dims_rope=ROPE,
    )  # fmt: skip


def _krea_pipeline(transformer: Any) -> Any:
    from diffusers import Krea2Pipeline

    return Krea2Pipeline(_flow(), None, None, None, transformer)


def _chroma(size: DenoiserSize) -> Any:
    from diffusers import ChromaTransformer2DModel

    return ChromaTransformer2DModel(
        num_layers=size.blocks, num_single_layers=2 * size.blocks, num_attention_heads=size.heads,
        attention_head_dim=HEAD, joint_attention_dim=TEXT, axes_dims_rope=ROPE, approximator_hidden_dim=HEAD,
        approximator_layers=1,
    )  # fmt: skip


def _chroma_pipeline(transformer: Any) -> Any:
    from diffusers import ChromaPipeline

    return ChromaPipeline(_flow(), None, None, None, transformer)


def _flux(size: DenoiserSize) -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        num_layers=size.blocks, num_single_layers=2 * size.blocks, num_attention_heads=size.heads,
        attention_head_dim=HEAD, joint_attention_dim=TEXT, pooled_projection_dim=TEXT, guidance_embeds=True,
        axes_dims_rope=ROPE,
    )  # fmt: skip


def _flux_pipeline(transformer: Any) -> Any:
    from diffusers import FluxPipeline

    return FluxPipeline(_flow(), None, None, None, None, None, transformer)


def _sdxl(size: DenoiserSize) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=size.side, block_out_channels=(size.width // 2, size.width), layers_per_block=size.blocks,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=size.blocks, attention_head_dim=(size.heads, size.heads), cross_attention_dim=TEXT,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT,
    )  # fmt: skip


def _sdxl_pipeline(unet: Any) -> Any:
    from diffusers import EulerDiscreteScheduler
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    blocks = StableDiffusionXLAutoBlocks()
    for name in ("text_encoder", "decode"):
        blocks.sub_blocks.pop(name)
    return modular_pipeline(blocks, unet=unet, scheduler=EulerDiscreteScheduler())


def _hunyuan(size: DenoiserSize) -> Any:
    from diffusers import HunyuanVideo15Transformer3DModel

    return HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=size.heads, attention_head_dim=HEAD, num_layers=size.blocks,
        num_refiner_layers=1, text_embed_dim=TEXT, text_embed_2_dim=TEXT, image_embed_dim=TEXT, rope_axes_dim=ROPE,
        target_size=16 * size.side,
    )  # fmt: skip


def _hunyuan_pipeline(transformer: Any) -> Any:
    from diffusers import HunyuanVideo15Pipeline
    from diffusers.configuration_utils import FrozenDict
    from diffusers.guiders import ClassifierFreeGuidance

    class Coder(nn.Module):
        """What the pipeline asks of its autoencoder before it decodes."""

        config, dtype, device = FrozenDict(latent_channels=4), torch.float32, torch.device("cpu")
        temporal_compression_ratio, spatial_compression_ratio = 4, 16

    guider = ClassifierFreeGuidance(guidance_scale=6.0)
    return HunyuanVideo15Pipeline(None, None, transformer, Coder(), _flow(), None, None, guider)


GUIDED_PIPELINES: dict[str, GuidedPipeline] = {
    "wan": GuidedPipeline(
        _wan, _wan_pipeline, DenoiserSize(5, 6, 12), {**_TEXT, "num_frames": 5, "guidance_scale": 5.0}
    ),
    "qwen-image": GuidedPipeline(
        _qwen,
        _qwen_pipeline,
        DenoiserSize(6, 6, 16),
        {
            "prompt_embeds": _random(1, TOKENS, TEXT), "prompt_embeds_mask": torch.ones(1, TOKENS, dtype=torch.int64),
            "negative_prompt_embeds": _random(1, TOKENS // 2, TEXT, seed=1),
            "negative_prompt_embeds_mask": torch.ones(1, TOKENS // 2, dtype=torch.int64), "true_cfg_scale": 4.0,
        },
    ),
    "krea2": GuidedPipeline(
        _krea,
        _krea_pipeline,
        DenoiserSize(4, 6, 16),
        {
            **_both("prompt_embeds", 1, TOKENS, 3, TEXT), **_masks("prompt_embeds_mask", dtype=torch.bool),
            "guidance_scale": 4.5,
        },
        contexts=False,
    ),
    "chroma": GuidedPipeline(
        _chroma,
        _chroma_pipeline,
        DenoiserSize(2, 6, 16),
        {**_TEXT, **_masks("prompt_attention_mask", dtype=torch.float32), "guidance_scale": 5.0},
        contexts=False,
    ),
    "flux": GuidedPipeline(
        _flux,
        _flux_pipeline,
        DenoiserSize(2, 6, 16),
        {**_TEXT, **_both("pooled_prompt_embeds", 1, TEXT), "true_cfg_scale": 4.0},
    ),
    "sdxl-modular": GuidedPipeline(
        _sdxl,
        _sdxl_pipeline,
        DenoiserSize(1, 4, 32),
        {**_TEXT, **_both("pooled_prompt_embeds", 1, TEXT)},
        pixels=8,
        contexts=False,
    ),
    "hunyuan-video-1.5": GuidedPipeline(
        _hunyuan,
        _hunyuan_pipeline,
        DenoiserSize(2, 5, 12),
        {
            **_TEXT, **_masks("prompt_embeds_mask"), **_both("prompt_embeds_2", 1, 8, TEXT),
            **_masks("prompt_embeds_mask_2", 8), "num_frames": 5,
        },
    ),
}  # fmt: skip
