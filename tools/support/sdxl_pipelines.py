"""The pipelines of Stable Diffusion XL, made small."""

from __future__ import annotations

from typing import Any

from tools.small_pipelines import vae
from tools.support.parts import clip, denoiser, made, picture, picture_mask, scheduler, words
from tools.support.tiny_pipeline import tiny_pipeline
from tools.support.unet_pipelines import adapter, controlnet

_TEXT: dict[str, Any] = {"prompt": "a red cat"}
_SIZED: dict[str, Any] = {**_TEXT, "height": 32, "width": 32}
_IMAGE: dict[str, Any] = {**_TEXT, "image": picture, "strength": 0.9}
_INPAINT: dict[str, Any] = {**_SIZED, "image": picture, "mask_image": picture_mask, "strength": 0.9}
_PAG: dict[str, Any] = {"pag_scale": 2.0}
_UNION: dict[str, Any] = {"control_mode": [0]}
_XL: dict[str, Any] = {
    "cross_attention_dim": 64, "attention_head_dim": (2, 4), "use_linear_projection": True,
    "projection_class_embeddings_input_dim": 80,
}  # fmt: skip


def _unet(**changes: Any) -> Any:
    return denoiser("UNet2DConditionModel", **{**_XL, **changes})


def _parts(**unet: Any) -> dict[str, Any]:
    return {
        "vae": vae(), "text_encoder": clip(), "tokenizer": words(),
        "text_encoder_2": clip(cls="CLIPTextModelWithProjection"), "tokenizer_2": words(), "unet": _unet(**unet),
        "scheduler": scheduler("EulerDiscrete", beta_schedule="scaled_linear", timestep_spacing="leading"),
    }  # fmt: skip


def _refiner() -> dict[str, Any]:
    unet = _unet(cross_attention_dim=32, projection_class_embeddings_input_dim=72)
    parts = {**_parts(), "unet": unet, "text_encoder": None, "tokenizer": None}
    return {**parts, "requires_aesthetics_score": True}


def _with_controlnet() -> dict[str, Any]:
    parts = _parts()
    return {**parts, "controlnet": controlnet(parts["unet"])}


def _with_union() -> dict[str, Any]:
    parts = _parts()
    union = made(
        "ControlNetUnionModel", **_XL, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=8, num_control_type=6, num_trans_channel=32, num_trans_head=4, num_proj_channel=32,
        conditioning_embedding_out_channels=(8, 16),
    )  # fmt: skip
    return {**parts, "controlnet": union}


SDXL_PIPELINES = [
    tiny_pipeline("StableDiffusionXLPipeline", _parts, **_SIZED),
    tiny_pipeline("StableDiffusionXLImg2ImgPipeline", _refiner, **_IMAGE),
    tiny_pipeline("StableDiffusionXLInpaintPipeline", lambda: _parts(in_channels=9), **_INPAINT),
    tiny_pipeline(
        "StableDiffusionXLInstructPix2PixPipeline", lambda: _parts(in_channels=8), **_SIZED, image=picture,
        image_guidance_scale=1.5,
    ),
    tiny_pipeline("StableDiffusionXLPAGPipeline", _parts, **_SIZED, **_PAG),
    tiny_pipeline("StableDiffusionXLPAGImg2ImgPipeline", _parts, **_IMAGE, **_PAG),
    tiny_pipeline("StableDiffusionXLPAGInpaintPipeline", _parts, **_INPAINT, **_PAG),
    tiny_pipeline("StableDiffusionXLControlNetPipeline", _with_controlnet, **_SIZED, image=picture),
    tiny_pipeline("StableDiffusionXLControlNetImg2ImgPipeline", _with_controlnet, **_IMAGE, control_image=picture),
    tiny_pipeline("StableDiffusionXLControlNetInpaintPipeline", _with_controlnet, **_INPAINT, control_image=picture),
    tiny_pipeline("StableDiffusionXLControlNetPAGPipeline", _with_controlnet, **_SIZED, image=picture, **_PAG),
    tiny_pipeline(
        "StableDiffusionXLControlNetPAGImg2ImgPipeline", _with_controlnet, **_IMAGE, control_image=picture, **_PAG
    ),
    tiny_pipeline(
        "StableDiffusionXLControlNetUnionPipeline", _with_union, **_SIZED, control_image=[picture()], **_UNION
    ),
    tiny_pipeline(
        "StableDiffusionXLControlNetUnionImg2ImgPipeline", _with_union, **_IMAGE, control_image=[picture()], **_UNION
    ),
    tiny_pipeline(
        "StableDiffusionXLControlNetUnionInpaintPipeline", _with_union, **_INPAINT, control_image=[picture()], **_UNION
    ),
    tiny_pipeline(
        "StableDiffusionXLAdapterPipeline", lambda: {**_parts(), "adapter": adapter()}, **_SIZED, image=picture
    ),
]  # fmt: skip
