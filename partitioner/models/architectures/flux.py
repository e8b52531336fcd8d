"""FLUX and its kin: packed tokens of 2 x 2 latents, and a text of 512 tokens before them."""

from __future__ import annotations

from typing import Any

from partitioner.models.inputs import Inputs, latent, prompt, timestep
from partitioner.models.registry import Request, register_model

TEXT = 512


def packed_tokens(request: Request, factor: int = 8) -> int:
    """Tokens of an image whose latents are packed 2 x 2; 1024 pixels each way unless others were asked for."""
    height, width = request.latent_pixels((1024, 1024), patch=2, factor=factor)
    return (height // 2) * (width // 2)


@register_model("FluxTransformer2DModel", guidance_style="none", dtype="bfloat16")
def _flux(request: Request) -> Inputs:
    """FLUX.1, dev, schnell and Fill: the timestep is cast to the latents' dtype."""
    config, rows = request.config, request.rows
    tokens = packed_tokens(request)
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, tokens, config["in_channels"]),
        "timestep": timestep(rows, dtype=None),
        "pooled_projections": prompt(rows, config["pooled_projection_dim"]),
        "encoder_hidden_states": prompt(rows, TEXT, config["joint_attention_dim"]),
        "txt_ids": prompt(TEXT, 3),
        "img_ids": prompt(tokens, 3),
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = prompt(rows, dtype="float32")
    return inputs


@register_model(
    "Flux2Transformer2DModel",
    guidance_style="two-calls",
    dtype="bfloat16",
    pipelines=(
        "Flux2Pipeline",
        "Flux2KleinPipeline",
    ),
)
def _flux2(request: Request) -> Inputs:
    """FLUX.2: dev takes the guidance scale as an input, Klein is called twice."""
    config, rows = request.config, request.rows
    tokens, axes = packed_tokens(request), len(config["axes_dims_rope"])
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, tokens, config["in_channels"]),
        "encoder_hidden_states": prompt(rows, TEXT, config["joint_attention_dim"]),
        "timestep": timestep(rows, dtype=None),
        "img_ids": prompt(rows, tokens, axes, dtype="int64"),
        "txt_ids": prompt(rows, TEXT, axes, dtype="int64"),
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = prompt(rows, dtype="float32")
    return inputs


@register_model(
    "ChromaTransformer2DModel",
    guidance_style="two-calls",
    dtype="bfloat16",
    pipelines=(
        "ChromaPipeline",
        "ChromaImg2ImgPipeline",
    ),
)
def _chroma(request: Request) -> Inputs:
    """Chroma: FLUX.1 without a pooled text, and with a mask of the text that covers the image as well."""
    config, rows = request.config, request.rows
    tokens = packed_tokens(request)
    return {
        "hidden_states": latent(rows, tokens, config["in_channels"]),
        "encoder_hidden_states": prompt(rows, TEXT, config["joint_attention_dim"]),
        "timestep": timestep(rows, dtype=None),
        "img_ids": prompt(tokens, 3),
        "txt_ids": prompt(TEXT, 3),
        "attention_mask": prompt(rows, TEXT + tokens),
    }


@register_model(
    "QwenImageTransformer2DModel",
    guidance_style="two-calls",
    dtype="bfloat16",
    pipelines=(
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
    ),
)
def _qwen_image(request: Request) -> Inputs:
    """Qwen-Image: positions follow from the image's size; no mask, since a text that nothing pads has none."""
    config, rows = request.config, request.rows
    height, width = request.latent_pixels((1024, 1024), patch=2)
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, (height // 2) * (width // 2), config["in_channels"]),
        "encoder_hidden_states": prompt(rows, TEXT, config["joint_attention_dim"]),
        "timestep": timestep(rows, dtype=None),
        "img_shapes": [[(1, height // 2, width // 2)]] * rows,
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = prompt(rows, dtype="float32")
    return inputs


@register_model("Krea2Transformer2DModel", guidance_style="two-calls", dtype="bfloat16", pipelines=("Krea2Pipeline",))
def _krea2(request: Request) -> Inputs:
    """Krea 2: the text is the hidden states of several layers of its encoder."""
    config, rows = request.config, request.rows
    tokens = packed_tokens(request)
    return {
        "hidden_states": latent(rows, tokens, config["in_channels"]),
        "encoder_hidden_states": prompt(rows, TEXT, config["num_text_layers"], config["text_hidden_dim"]),
        "timestep": timestep(rows, dtype=None),
        "position_ids": prompt(TEXT + tokens, len(config["axes_dims_rope"]), dtype="float32"),
        "encoder_attention_mask": prompt(rows, TEXT, dtype="bool"),
    }
