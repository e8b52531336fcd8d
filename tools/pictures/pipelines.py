"""The small pipelines that the repository trains and ships: how each is built with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tools.pictures.tokenizers import TOKENS, clip_tokenizer, t5_tokenizer

TRAINED = Path(__file__).parents[1] / "trained"
TEXT_WIDTH = 64


DENOISERS = ("unet", "dit", "mmdit")


def new_codec() -> AutoencoderTiny:
    """An untrained autoencoder: pictures of 3 x 32 x 32 to latents of 4 x 8 x 8 and back."""
    widths, blocks = (32, 32, 32), (1, 1, 1)
    return AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        num_encoder_blocks=blocks, num_decoder_blocks=blocks, latent_channels=4,
    )  # fmt: skip


def load_codec(folder: Path) -> AutoencoderTiny:
    """The trained autoencoder, without the folder that it came from in its configuration."""
    codec = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32).eval()
    codec.register_to_config(_name_or_path="")
    return codec


def call_arguments(kind: str) -> dict[str, Any]:
    """The arguments that a call of a shipped pipeline needs besides prompt and steps."""
    own: dict[str, dict[str, Any]] = {
        "dit": {"use_resolution_binning": False, "clean_caption": False},
        "mmdit": {"max_sequence_length": 0},  # no empty tokens
    }
    return own.get(kind, {})


def new_pipeline(kind: str, codec: AutoencoderTiny) -> Any:
    """A pipeline of class StableDiffusionPipeline ("unet"), PixArtAlphaPipeline ("dit") or StableDiffusion3Pipeline
    ("mmdit") with random weights."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    if kind == "unet":
        tokenizer, encoder = _clip(CLIPTextModel)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64, 128), layers_per_block=1,
            norm_num_groups=8, cross_attention_dim=TEXT_WIDTH, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        return StableDiffusionPipeline(
            vae=codec, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    if kind == "mmdit":
        # narrower than "dit": a block has two streams, each with its own weights
        transformer = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=10, num_attention_heads=3,
            attention_head_dim=32, joint_attention_dim=2 * TEXT_WIDTH, caption_projection_dim=96,
            pooled_projection_dim=2 * TEXT_WIDTH, pos_embed_max_size=8,
        )  # fmt: skip
        tokenizer, encoder = _clip(CLIPTextModelWithProjection)
        tokenizer_2, encoder_2 = _clip(CLIPTextModelWithProjection)
        return StableDiffusion3Pipeline(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=codec,
            text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=encoder_2, tokenizer_2=tokenizer_2,
            text_encoder_3=None, tokenizer_3=None,
        )  # fmt: skip
    tokenizer = t5_tokenizer()
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=16, d_ff=2 * TEXT_WIDTH, num_layers=2, num_heads=4,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=4, num_layers=10,
        cross_attention_dim=128, caption_channels=TEXT_WIDTH, sample_size=8, patch_size=2,
        use_additional_conditions=False, norm_type="ada_norm_single",
    )  # fmt: skip
    return PixArtAlphaPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=codec, transformer=transformer, scheduler=scheduler
    )


def _clip(encoder: Any) -> tuple[Any, Any]:
    """(tokenizer, text encoder of a CLIP class)."""
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer, encoder(config)
