"""The pipelines that make images with transformers, made small: SD3, Flux and their kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tools.small_pipelines import vae
from tools.support.parts import clip, denoiser, made, picture, picture_mask, scheduler, t5, words
from tools.support.tiny_denoiser import randomise
from tools.support.tiny_pipeline import TinyPipeline, tiny_pipeline

_TEXT: dict[str, Any] = {"prompt": "a red cat", "max_sequence_length": 16}
_SIZED: dict[str, Any] = {**_TEXT, "height": 32, "width": 32}
_IMAGE: dict[str, Any] = {**_SIZED, "image": picture, "strength": 0.9}
_INPAINT: dict[str, Any] = {**_IMAGE, "mask_image": picture_mask}
_TRUE: dict[str, Any] = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}  # guidance in two calls
_KONTEXT: dict[str, Any] = {**_SIZED, "image": picture, "max_area": 1024, "_auto_resize": False, **_TRUE}


def flow(**config: Any) -> Any:
    """Flow matching's scheduler."""
    return scheduler("FlowMatchEulerDiscrete", **config)


def shifted_vae(**config: Any) -> Any:
    """An autoencoder whose latents have a mean, as flow models take them."""
    return vae(shift_factor=0.1, scaling_factor=1.5, **config)


def embedding(*shape: int, seed: int = 0) -> Callable[[], torch.Tensor]:
    """Makes an encoded prompt."""
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ones(*shape: int) -> Callable[[], torch.Tensor]:
    """Makes a mask of an encoded prompt."""
    return lambda: torch.ones(shape, dtype=torch.long)


def _sd3(channels: int = 4, **transformer: Any) -> dict[str, Any]:
    pooled = "CLIPTextModelWithProjection"
    return {
        "transformer": denoiser(
            "SD3Transformer2DModel", joint_attention_dim=64, pooled_projection_dim=64, in_channels=channels,
            out_channels=channels, **transformer,
        ),
        "scheduler": flow(shift=3.0), "vae": shifted_vae(latent_channels=channels),
        "text_encoder": clip(cls=pooled), "tokenizer": words(),
        "text_encoder_2": clip(cls=pooled), "tokenizer_2": words(), "text_encoder_3": t5(64), "tokenizer_3": words(),
    }  # fmt: skip


def _sd3_controlnet(extra: int = 0) -> dict[str, Any]:
    parts = _sd3(dual_attention_layers=())
    config = {**parts["transformer"].config, "num_layers": 1, "extra_conditioning_channels": extra}
    known = ("sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads",
             "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "out_channels",
             "pos_embed_max_size", "qk_norm", "extra_conditioning_channels")  # fmt: skip
    return {**parts, "controlnet": made("SD3ControlNetModel", **{name: config[name] for name in known})}


def _flux(**transformer: Any) -> dict[str, Any]:
    return {
        "transformer": denoiser("FluxTransformer2DModel", **transformer),
        "scheduler": flow(use_dynamic_shifting=True), "vae": shifted_vae(), "text_encoder": clip(24),
        "tokenizer": words(), "text_encoder_2": t5(), "tokenizer_2": words(),
    }  # fmt: skip


def _flux_controlnet() -> dict[str, Any]:
    from diffusers import FluxControlNetModel

    parts = _flux()
    beside = FluxControlNetModel.from_transformer(
        parts["transformer"], num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )
    randomise(beside)
    return {**parts, "controlnet": beside}


def _t5_and(name: str, sampler: Any = None, **transformer: Any) -> Callable[[], dict[str, Any]]:
    """A transformer with a T5 encoder and an autoencoder."""
    return lambda: {
        "transformer": denoiser(name, **transformer), "scheduler": (sampler or flow)(), "vae": shifted_vae(),
        "text_encoder": t5(), "tokenizer": words(),
    }  # fmt: skip


def _without_encoder(
    name: str, coder: Callable[[], Any] = shifted_vae, **transformer: Any
) -> Callable[[], dict[str, Any]]:
    """A transformer and an autoencoder, for prompts that are encoded already."""
    return lambda: {"transformer": denoiser(name, **transformer), "scheduler": flow(), "vae": coder()}


def _dpm() -> Any:
    return scheduler("DPMSolverMultistep")


def _ddim() -> Any:
    return scheduler("CogVideoXDDIM")


def qwen_vae(halvings: int = 2) -> Any:
    """Qwen-Image's autoencoder, which halves an image's sides so often."""
    return made(
        "AutoencoderKLQwenImage", base_dim=8, z_dim=4, dim_mult=[1, 2, 4, *[1] * (halvings - 2)], num_res_blocks=1,
        temperal_downsample=[False, *[True] * (halvings - 1)], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def _deep_vae() -> Any:
    return made(
        "AutoencoderDC", in_channels=3, latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip


def flux2_vae() -> Any:
    """FLUX.2's autoencoder."""
    return made(
        "AutoencoderKLFlux2", sample_size=32, down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(8, 8),
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip


def _encoded(name: str, parts: Callable[[], dict[str, Any]], *left_out: str, **call: Any) -> TinyPipeline:
    """A pipeline that is given encoded prompts."""
    return TinyPipeline(
        name, parts, {"prompt": None, "height": 32, "width": 32, **call}, left_out=("text_encoder", *left_out)
    )


_BOTH: dict[str, Any] = {
    "prompt_embeds": embedding(1, 7, 24), "negative_prompt_embeds": embedding(1, 7, 24, seed=1),
    "negative_prompt": None,
}  # fmt: skip
_QWEN: dict[str, Any] = {
    "prompt_embeds": embedding(1, 7, 24), "prompt_embeds_mask": ones(1, 7), "true_cfg_scale": 3.0,
    "negative_prompt_embeds": embedding(1, 5, 24, seed=1), "negative_prompt_embeds_mask": ones(1, 5),
    "negative_prompt": None,
}  # fmt: skip
_Z_IMAGE: dict[str, Any] = {
    "prompt_embeds": lambda: [embedding(7, 24)()], "negative_prompt_embeds": lambda: [embedding(5, 24, seed=1)()],
    "prompt": None,
}  # fmt: skip
_CHROMA: dict[str, Any] = {"negative_prompt": "a dog"}

IMAGE_PIPELINES = [
    tiny_pipeline(
        "StableDiffusion3Pipeline", _sd3, **_SIZED, skip_guidance_layers=[1], skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
    ),
    tiny_pipeline("StableDiffusion3Img2ImgPipeline", _sd3, **_IMAGE),
    tiny_pipeline("StableDiffusion3InpaintPipeline", lambda: _sd3(16), **_INPAINT),
    tiny_pipeline("StableDiffusion3PAGPipeline", _sd3, **_SIZED, pag_scale=1.0),
    tiny_pipeline("StableDiffusion3PAGImg2ImgPipeline", _sd3, **_IMAGE, pag_scale=1.0),
    tiny_pipeline("StableDiffusion3ControlNetPipeline", _sd3_controlnet, **_SIZED, control_image=picture),
    tiny_pipeline(
        "StableDiffusion3ControlNetInpaintingPipeline", lambda: _sd3_controlnet(1), **_SIZED, control_image=picture,
        control_mask=picture_mask,
    ),
    tiny_pipeline("FluxPipeline", _flux, **_SIZED, **_TRUE),
    tiny_pipeline("FluxImg2ImgPipeline", _flux, **_IMAGE, **_TRUE),
    tiny_pipeline("FluxInpaintPipeline", _flux, **_INPAINT, **_TRUE),
    tiny_pipeline(
        "FluxFillPipeline", lambda: _flux(in_channels=48, out_channels=16), **_SIZED, image=picture,
        mask_image=picture_mask,
    ),
    tiny_pipeline(
        "FluxControlPipeline", lambda: _flux(in_channels=32, out_channels=16), **_SIZED, control_image=picture
    ),
    tiny_pipeline(
        "FluxControlImg2ImgPipeline", lambda: _flux(in_channels=32, out_channels=16), **_IMAGE, control_image=picture
    ),
    tiny_pipeline(
        "FluxControlInpaintPipeline", lambda: _flux(in_channels=32, out_channels=16), **_INPAINT, control_image=picture
    ),
    tiny_pipeline("FluxControlNetPipeline", _flux_controlnet, **_SIZED, control_image=picture, **_TRUE),
    tiny_pipeline("FluxControlNetImg2ImgPipeline", _flux_controlnet, **_IMAGE, control_image=picture),
    tiny_pipeline("FluxControlNetInpaintPipeline", _flux_controlnet, **_INPAINT, control_image=picture),
    tiny_pipeline("FluxKontextPipeline", _flux, **_KONTEXT),
    tiny_pipeline("FluxKontextInpaintPipeline", _flux, **_KONTEXT, mask_image=picture_mask, strength=0.9),
    tiny_pipeline("ChromaPipeline", _t5_and("ChromaTransformer2DModel"), **_SIZED, **_CHROMA),
    tiny_pipeline("ChromaImg2ImgPipeline", _t5_and("ChromaTransformer2DModel"), **_IMAGE, **_CHROMA),
    tiny_pipeline("AuraFlowPipeline", _t5_and("AuraFlowTransformer2DModel", sample_size=16), **_SIZED),
    tiny_pipeline("BriaPipeline", _t5_and("BriaTransformer2DModel"), **_SIZED),
    tiny_pipeline(
        "CogView3PlusPipeline", _t5_and("CogView3PlusTransformer2DModel", _ddim, sample_size=16), **_SIZED
    ),
    _encoded("CogView4Pipeline", _without_encoder("CogView4Transformer2DModel"), "tokenizer", **_BOTH),
    _encoded(
        "CogView4ControlPipeline", _without_encoder("CogView4Transformer2DModel", in_channels=8), "tokenizer", **_BOTH,
        control_image=picture,
    ),
    tiny_pipeline(
        "PixArtAlphaPipeline", _t5_and("PixArtTransformer2DModel", _dpm, sample_size=16), **_SIZED,
        use_resolution_binning=False, clean_caption=False,
    ),
    tiny_pipeline(
        "PixArtSigmaPipeline", _t5_and("PixArtTransformer2DModel", _dpm, sample_size=16), **_SIZED,
        use_resolution_binning=False, clean_caption=False,
    ),
    tiny_pipeline(
        "PixArtSigmaPAGPipeline", _t5_and("PixArtTransformer2DModel", _dpm, sample_size=16), **_SIZED,
        use_resolution_binning=False, clean_caption=False, pag_scale=2.0,
    ),
    TinyPipeline(
        "DiTPipeline",
        lambda: {
            "transformer": denoiser("DiTTransformer2DModel", num_embeds_ada_norm=1000), "vae": vae(),
            "scheduler": scheduler("DDIM", clip_sample=False),
        },
        {"class_labels": [3]}, "np",
    ),
    _encoded(
        "SanaPipeline", _without_encoder("SanaTransformer2DModel", _deep_vae), "tokenizer", **_BOTH,
        prompt_attention_mask=ones(1, 7), negative_prompt_attention_mask=ones(1, 7), use_resolution_binning=False,
    ),
    _encoded(
        "SanaPAGPipeline", _without_encoder("SanaTransformer2DModel", _deep_vae), "tokenizer", **_BOTH,
        prompt_attention_mask=ones(1, 7), negative_prompt_attention_mask=ones(1, 7), use_resolution_binning=False,
        pag_scale=2.0,
    ),
    _encoded("Lumina2Pipeline", _without_encoder("Lumina2Transformer2DModel"), "tokenizer", **_BOTH,
             prompt_attention_mask=ones(1, 7), negative_prompt_attention_mask=ones(1, 7)),
    _encoded("LuminaPipeline", _without_encoder("LuminaNextDiT2DModel"), "tokenizer", **_BOTH,
             prompt_attention_mask=ones(1, 7), negative_prompt_attention_mask=ones(1, 7)),
    _encoded("QwenImagePipeline", _without_encoder("QwenImageTransformer2DModel", qwen_vae), "tokenizer", **_QWEN),
    _encoded(
        "QwenImageImg2ImgPipeline", _without_encoder("QwenImageTransformer2DModel", qwen_vae), "tokenizer", **_QWEN,
        image=picture, strength=0.9,
    ),
    _encoded(
        "QwenImageInpaintPipeline", _without_encoder("QwenImageTransformer2DModel", qwen_vae), "tokenizer", **_QWEN,
        image=picture, mask_image=picture_mask, strength=0.9,
    ),
    _encoded("ZImagePipeline", _without_encoder("ZImageTransformer2DModel"), "tokenizer", **_Z_IMAGE),
    _encoded(
        "ZImageImg2ImgPipeline", _without_encoder("ZImageTransformer2DModel"), "tokenizer", **_Z_IMAGE, image=picture,
        strength=0.9,
    ),
    _encoded(
        "Flux2Pipeline", _without_encoder("Flux2Transformer2DModel", flux2_vae), "tokenizer",
        prompt_embeds=embedding(1, 7, 24),
    ),
    _encoded(
        "Flux2KleinPipeline", _without_encoder("Flux2Transformer2DModel", flux2_vae, guidance_embeds=False),
        "tokenizer", **{name: value for name, value in _BOTH.items() if name != "negative_prompt"},
    ),
    _encoded("OvisImagePipeline", _without_encoder("OvisImageTransformer2DModel"), "tokenizer", **_BOTH),
    _encoded("PRXPipeline", _without_encoder("PRXTransformer2DModel"), "tokenizer", **_BOTH,
             prompt_attention_mask=ones(1, 7), negative_prompt_attention_mask=ones(1, 7), prompt=None,
             use_resolution_binning=False),
]  # fmt: skip
