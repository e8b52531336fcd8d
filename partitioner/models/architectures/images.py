"""Transformers that make images: Stable Diffusion 3, PixArt, Sana, Lumina 2, Z-Image, HunyuanImage, Cosmos."""

from __future__ import annotations

from typing import Any

from partitioner.models.inputs import Inputs, latent, prompt, timestep
from partitioner.models.registry import Request, register_model


@register_model("SD3Transformer2DModel")
def _sd3(request: Request) -> Inputs:
    """Stable Diffusion 3: 77 CLIP tokens, then 256 T5 tokens."""
    config, rows = request.config, request.rows
    return {
        "hidden_states": latent(rows, config["in_channels"], *request.latent_pixels(patch=config["patch_size"])),
        "timestep": timestep(rows),
        "encoder_hidden_states": prompt(rows, 77 + 256, config["joint_attention_dim"]),
        "pooled_projections": prompt(rows, config["pooled_projection_dim"]),
    }


@register_model("PixArtTransformer2DModel")
def _pixart(request: Request) -> Inputs:
    """PixArt: Alpha has 120 tokens and, at 1024 pixels, the image's size as an input; Sigma 300 tokens and no size."""
    config, rows = request.config, request.rows
    sized = config["use_additional_conditions"]
    sized = config["sample_size"] == 128 if sized is None else sized
    alpha = sized or request.pipeline.get("_class_name") == "PixArtAlphaPipeline"
    tokens = 120 if alpha else 300
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, config["in_channels"], *request.latent_pixels(patch=config["patch_size"])),
        "encoder_hidden_states": prompt(rows, tokens, config["caption_channels"]),
        "encoder_attention_mask": prompt(rows, tokens, dtype="int64"),
        "timestep": timestep(rows),
    }
    size = {"resolution": prompt(rows, 2), "aspect_ratio": prompt(rows, 1)}
    inputs["added_cond_kwargs"] = size if sized else dict.fromkeys(size)
    return inputs


@register_model("SanaTransformer2DModel", dtype="bfloat16", pipelines=("SanaPipeline",))
def _sana(request: Request) -> Inputs:
    """Sana: a VAE of 32 pixels per latent pixel."""
    config, rows = request.config, request.rows
    pixels = request.latent_pixels((1024, 1024), patch=config["patch_size"], factor=32)
    return {
        "hidden_states": latent(rows, config["in_channels"], *pixels),
        "encoder_hidden_states": prompt(rows, 300, config["caption_channels"]),
        "timestep": timestep(rows),
        "encoder_attention_mask": prompt(rows, 300, dtype="int64"),
    }


@register_model(
    "Lumina2Transformer2DModel",
    guidance_style="two-calls",
    dtype="bfloat16",
    pipelines=("Lumina2Pipeline",),
)
def _lumina2(request: Request) -> Inputs:
    """Lumina Image 2: 256 tokens of text."""
    config, rows = request.config, request.rows
    pixels = request.latent_pixels(patch=config["patch_size"])
    return {
        "hidden_states": latent(rows, config["in_channels"], *pixels),
        "timestep": timestep(rows),
        "encoder_hidden_states": prompt(rows, 256, config["cap_feat_dim"]),
        "encoder_attention_mask": prompt(rows, 256, dtype="int64"),
    }


@register_model(
    "ZImageTransformer2DModel",
    dtype="bfloat16",
    pipelines=(
        "ZImagePipeline",
        "ZImageImg2ImgPipeline",
    ),
)
def _z_image(request: Request) -> Inputs:
    """Z-Image: lists of images, of one frame each, and of texts, of up to 512 tokens each."""
    config, rows = request.config, request.rows
    height, width = request.latent_pixels((1024, 1024), patch=max(config["all_patch_size"]))
    return {
        "x": [latent(config["in_channels"], 1, height, width)] * rows,
        "t": timestep(rows),
        "cap_feats": [prompt(512, config["cap_feat_dim"])] * rows,
    }


@register_model(
    "HunyuanImageTransformer2DModel", guidance_style="two-calls", dtype="bfloat16", pipelines=("HunyuanImagePipeline",)
)
def _hunyuan_image(request: Request) -> Inputs:
    """HunyuanImage 2.1: 1000 tokens of text and 128 of what is to be written in the image."""
    config, rows = request.config, request.rows
    pixels = request.latent_pixels((2048, 2048), patch=max(config["patch_size"]), factor=32)
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, config["in_channels"], *pixels),
        "timestep": timestep(rows, dtype=None),
        "encoder_hidden_states": prompt(rows, 1000, config["text_embed_dim"]),
        "encoder_attention_mask": prompt(rows, 1000, dtype="int64"),
    }
    if config["text_embed_2_dim"] is not None:
        inputs["encoder_hidden_states_2"] = prompt(rows, 128, config["text_embed_2_dim"])
        inputs["encoder_attention_mask_2"] = prompt(rows, 128, dtype="int64")
    if config["use_meanflow"]:
        inputs["timestep_r"] = timestep(rows, dtype=None)
    if config["guidance_embeds"]:
        inputs["guidance"] = prompt(rows)
    return inputs


@register_model(
    "CosmosTransformer3DModel", guidance_style="two-calls", dtype="bfloat16", pipelines=("Cosmos2TextToImagePipeline",)
)
def _cosmos(request: Request) -> Inputs:
    """Cosmos Predict 2, from text to an image: a video of one frame, and a mask of what pads it."""
    config, rows = request.config, request.rows
    height, width = request.pixels((768, 1360), request.vae_factor() * config["patch_size"][1])
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, config["in_channels"], 1, *request.latent_pixels((768, 1360))),
        "timestep": timestep(rows, dtype=None),
        "encoder_hidden_states": prompt(rows, 512, config["text_embed_dim"]),
    }
    if config["concat_padding_mask"]:
        inputs["padding_mask"] = prompt(1, 1, height, width)
    return inputs
