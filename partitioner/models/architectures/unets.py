"""UNets: Stable Diffusion 1 and 2, SDXL, ControlNets with them, Stable Video Diffusion, AnimateDiff, pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from partitioner.models.inputs import Inputs, latent, prompt, step, timestep
from partitioner.models.registry import NotDescribed, Request, register_model


@register_model("UNet2DConditionModel")
def _unet_2d_condition(request: Request) -> Inputs:
    """Stable Diffusion 1, 2, inpainting, upscaling; SDXL base, refiner; with a ControlNet; distilled (LCM)."""
    config, rows = request.config, request.rows
    inputs: dict[str, Any] = {
        "sample": latent(rows, config["in_channels"], *request.latent_pixels()),
        "timestep": timestep(),
        "encoder_hidden_states": prompt(rows, 77, _width_of(config["cross_attention_dim"])),
    }
    if "controlnet" in request.pipeline:
        inputs |= _residuals(config, inputs["sample"].shape)
    if config["num_class_embeds"] is not None:
        inputs["class_labels"] = prompt(rows, dtype="int64")
    if config["time_cond_proj_dim"] is not None:
        inputs["timestep_cond"] = prompt(rows, config["time_cond_proj_dim"])
    images = _image_prompts(request)
    if config["addition_embed_type"] == "text_time":
        inputs["added_cond_kwargs"] = {**_text_and_size(request), **images}
    elif images:
        inputs["added_cond_kwargs"] = images
    elif config["addition_embed_type"] not in (None, "text") or config["class_embed_type"] is not None:
        kind = config["addition_embed_type"] or config["class_embed_type"]
        raise NotDescribed(
            f"a UNet2DConditionModel with {kind!r} conditioning is not known; use "
            "partitioner.compile(module, example_inputs, roles, devices=...)"
        )
    return inputs


def _residuals(config: Mapping[str, Any], sample: tuple[int, ...]) -> Inputs:
    """What a ControlNet adds to the outputs of conv_in, of each layer and downsampler, and of the middle."""
    rows, _, height, width = sample
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    down = [step(rows, widths[0], height, width)]
    for block, channels in enumerate(widths):
        count = layers if isinstance(layers, int) else layers[block]
        down += [step(rows, channels, height, width)] * count
        if block < len(widths) - 1:
            height, width = (height + 1) // 2, (width + 1) // 2
            down.append(step(rows, channels, height, width))
    return {
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": step(rows, widths[-1], height, width),
    }


def _text_and_size(request: Request) -> Inputs:
    """What SDXL adds to the timestep: the pooled text, and the sizes that the image was to have."""
    config, rows = request.config, request.rows
    ids = 5 if request.pipeline.get("requires_aesthetics_score") else 6
    pooled = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
    return {"text_embeds": prompt(rows, pooled), "time_ids": prompt(rows, ids)}


def _image_prompts(request: Request) -> Inputs:
    """The image embeddings that the UNet needs where IP-Adapters were added to it, one tensor for each."""
    added = getattr(request.denoiser, "encoder_hid_proj", None)
    inputs = []
    for projection in getattr(added, "image_projection_layers", ()):
        width = next(module.in_features for module in projection.modules() if hasattr(module, "in_features"))
        # CLIP's pooled embedding, or those of all its patches
        tokens = () if hasattr(projection, "image_embeds") else (257,)
        inputs.append(prompt(request.rows, 1, *tokens, width))
    return {"image_embeds": inputs} if inputs else {}


def _width_of(cross_attention_dim: int | list[int]) -> int:
    return cross_attention_dim if isinstance(cross_attention_dim, int) else cross_attention_dim[0]


@register_model("UNet2DModel", guidance_style="none")
def _unet_2d(request: Request) -> Inputs:
    """Denoisers without a VAE, in pixels: DDPM, DDIM, consistency models."""
    config, rows = request.config, request.rows
    size = config["sample_size"]
    height, width = request.pixels((size, size) if isinstance(size, int) else tuple(size), 1)
    inputs: dict[str, Any] = {"sample": latent(rows, config["in_channels"], height, width), "timestep": timestep()}
    if config["num_class_embeds"] is not None:
        inputs["class_labels"] = prompt(rows, dtype="int64")
    return inputs


@register_model("UNetSpatioTemporalConditionModel", video=True)
def _svd(request: Request) -> Inputs:
    """Stable Video Diffusion: the image's latents are channels of the sample, its CLIP embedding is the prompt."""
    config, rows = request.config, request.rows
    # Its upsampling only doubles, so every level needs an even size.
    height, width = request.latent_pixels((576, 1024), patch=2 ** (len(config["block_out_channels"]) - 1))
    ids = config["projection_class_embeddings_input_dim"] // config["addition_time_embed_dim"]
    return {
        "sample": latent(rows, request.frames or config["num_frames"], config["in_channels"], height, width),
        "timestep": timestep(),
        "encoder_hidden_states": prompt(rows, 1, _width_of(config["cross_attention_dim"])),
        "added_time_ids": prompt(rows, ids),
    }


@register_model("UNetMotionModel", video=True)
def _animatediff(request: Request) -> Inputs:
    """AnimateDiff, of SD and SDXL: the pipeline repeats the prompt's rows once per frame."""
    config, rows = request.config, request.rows
    frames = request.frames or 16
    inputs: dict[str, Any] = {
        "sample": latent(rows, config["in_channels"], frames, *request.latent_pixels()),
        "timestep": timestep(),
        "encoder_hidden_states": prompt(rows * frames, 77, _width_of(config["cross_attention_dim"])),
    }
    texts = _text_and_size(request) if config["addition_embed_type"] == "text_time" else {}
    added = {**texts, **_image_prompts(request)}
    return {**inputs, "added_cond_kwargs": added} if added else inputs
