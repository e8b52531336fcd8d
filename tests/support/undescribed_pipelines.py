"""Small pipelines of classes that no description knows: how they call their denoiser is to be found by running them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5EncoderModel

from tests.support.pipelines import stable_diffusion


def aura_flow(folder: Path) -> Any:
    """AuraFlowPipeline: both halves of guidance in one batch."""
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

    parts = stable_diffusion(folder)
    transformer = AuraFlowTransformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=2,
        attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
        pos_embed_max_size=256,
    ).eval()  # fmt: skip
    return AuraFlowPipeline(
        tokenizer=parts.tokenizer, text_encoder=_t5(len(parts.tokenizer)), vae=parts.vae, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def cogview_4(folder: Path) -> Any:
    """CogView4Pipeline: two calls per step, one for each half of guidance."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import GlmConfig, GlmModel

    parts = stable_diffusion(folder)
    encoder = GlmModel(
        GlmConfig(
            vocab_size=len(parts.tokenizer), hidden_size=32, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, head_dim=8, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    transformer = CogView4Transformer2DModel(
        patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4, out_channels=4,
        text_embed_dim=32, time_embed_dim=8, condition_dim=4,
    ).eval()  # fmt: skip
    return CogView4Pipeline(
        tokenizer=parts.tokenizer, text_encoder=encoder, vae=parts.vae, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )  # fmt: skip


def control_net(folder: Path) -> Any:
    """StableDiffusionControlNetPipeline: another module gives the denoiser something anew at every step."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    parts = stable_diffusion(folder)
    control = ControlNetModel.from_unet(parts.unet, conditioning_embedding_out_channels=(8, 16)).eval()
    return StableDiffusionControlNetPipeline(**parts.components, controlnet=control, requires_safety_checker=False)


def _t5(words: int) -> Any:
    return T5EncoderModel(T5Config(vocab_size=words, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)).eval()


MAKERS: dict[str, Callable[[Path], Any]] = {
    "aura_flow": aura_flow, "cogview_4": cogview_4, "control_net": control_net
}  # fmt: skip


def made(name: str, folder: Path) -> Any:
    """A pipeline from seed 0, without its progress bar."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = MAKERS[name](folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
