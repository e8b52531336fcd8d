"""Built-in architectures: the arguments of one denoiser call, as diffusers' pipelines give them.

Arguments that are None there are left out.
"""

from __future__ import annotations

from typing import Any

from partitioner.errors import UsageError
from partitioner.models.inputs import Inputs, latent, prompt, timestep
from partitioner.models.registry import Request, register_model


@register_model("UNet2DConditionModel")
def _unet_2d_condition(request: Request) -> Inputs:
    """Stable Diffusion 1, 2, inpainting and upscaling; SDXL base and refiner; their LCM distillations."""
    config, rows = request.config, request.rows
    inputs: dict[str, Any] = {
        "sample": latent(rows, config["in_channels"], *request.latent_pixels()),
        "timestep": timestep(),
        "encoder_hidden_states": prompt(rows, 77, _width_of(config["cross_attention_dim"])),
    }
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
        raise UsageError(
            f"a UNet2DConditionModel with {kind!r} conditioning is not known; use "
            "partitioner.compile(module, example_inputs, roles, devices=...)"
        )
    return inputs


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


@register_model("UNet2DModel", batches_guidance=False)
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


@register_model("FluxTransformer2DModel", batches_guidance=False, dtype="bfloat16")
def _flux(request: Request) -> Inputs:
    """FLUX.1: the pipeline packs 2 x 2 latents into a token and casts the timestep to the latents' dtype."""
    config, rows = request.config, request.rows
    side = 128 * request.vae_factor
    height, width = request.latent_pixels((side, side), patch=2)
    tokens = (height // 2) * (width // 2)
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, tokens, config["in_channels"]),
        "timestep": timestep(rows, dtype=None),
        "pooled_projections": prompt(rows, config["pooled_projection_dim"]),
        "encoder_hidden_states": prompt(rows, 512, config["joint_attention_dim"]),
        "txt_ids": prompt(512, 3),
        "img_ids": prompt(tokens, 3),
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = prompt(rows, dtype="float32")
    return inputs


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
    if sized:
        inputs["added_cond_kwargs"] = {"resolution": prompt(rows, 2), "aspect_ratio": prompt(rows, 1)}
    return inputs


@register_model("WanTransformer3DModel", batches_guidance=False, video=True, dtype="bfloat16")
def _wan(request: Request) -> Inputs:
    """Wan: guidance is a second call; the first frame is a latent of its own, then every 4 frames make one."""
    config, rows = request.config, request.rows
    height, width = request.latent_pixels((480, 832), patch=config["patch_size"][1])
    frames = 81 if request.frames is None else request.frames
    factor = int(request.vae.get("scale_factor_temporal", 4))
    if frames % factor != 1 % factor:
        near = (frames - 1) // factor * factor + 1
        raise UsageError(f"--frames {frames}: this model makes {factor} x n + 1 frames; use {near} or {near + factor}")
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, config["in_channels"], (frames - 1) // factor + 1, height, width),
        "timestep": timestep(rows),
        "encoder_hidden_states": prompt(rows, 512, config["text_dim"]),
    }
    if config["image_dim"] is not None:
        inputs["encoder_hidden_states_image"] = prompt(rows, 257, config["image_dim"])
    return inputs
