"""The pipelines that make videos with UNets, and others with UNets, made small."""

from __future__ import annotations

from typing import Any

import torch

from tools.small_pipelines import vae
from tools.support.parts import clip, clip_of, denoiser, made, picture, picture_mask, scheduler, t5, vision, words
from tools.support.tiny_pipeline import TinyPipeline, tiny_pipeline
from tools.support.unet_pipelines import controlnet

_TEXT: dict[str, Any] = {"prompt": "a red cat"}
_VIDEO: dict[str, Any] = {**_TEXT, "height": 32, "width": 32, "num_frames": 2}
_FRAMES: dict[str, Any] = {**_TEXT, "video": clip_of(), "strength": 0.9}
_PLAIN: dict[str, Any] = {
    "addition_embed_type": None, "projection_class_embeddings_input_dim": None, "cross_attention_dim": 32,
}  # fmt: skip


def _unet(**changes: Any) -> Any:
    return denoiser("UNet2DConditionModel", **{**_PLAIN, **changes})


def _text(width: int = 32) -> dict[str, Any]:
    return {"text_encoder": clip(width), "tokenizer": words()}


def _motion() -> Any:
    return made(
        "MotionAdapter", block_out_channels=(32, 64), motion_layers_per_block=1, motion_norm_num_groups=8,
        motion_num_attention_heads=4,
    )  # fmt: skip


def _animatediff() -> dict[str, Any]:
    return {
        **_text(), "vae": vae(), "unet": _unet(), "motion_adapter": _motion(),
        "scheduler": scheduler("DDIM", beta_schedule="linear", clip_sample=False),
    }  # fmt: skip


def _animatediff_xl() -> dict[str, Any]:
    unet = denoiser(
        "UNet2DConditionModel", cross_attention_dim=64, attention_head_dim=(2, 4), use_linear_projection=True,
        projection_class_embeddings_input_dim=80,
    )  # fmt: skip
    return {
        **_animatediff(), "unet": unet, "text_encoder_2": clip(cls="CLIPTextModelWithProjection"),
        "tokenizer_2": words(),
    }  # fmt: skip


def _animatediff_controlnet() -> dict[str, Any]:
    parts = _animatediff()
    return {**parts, "controlnet": controlnet(parts["unet"])}


def _sparse() -> dict[str, Any]:
    beside = made(
        "SparseControlNetModel", block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=32, conditioning_embedding_out_channels=(8, 16), num_attention_heads=4,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), use_simplified_condition_embedding=False,
        conditioning_channels=3,
    )  # fmt: skip
    return {**_animatediff(), "controlnet": beside}


def _pia() -> dict[str, Any]:
    return {**_animatediff(), "unet": _unet(in_channels=9)}


def _text_to_video() -> dict[str, Any]:
    return {
        **_text(), "vae": vae(), "unet": denoiser("UNet3DConditionModel", cross_attention_dim=32),
        "scheduler": scheduler("DDIM", beta_schedule="scaled_linear", clip_sample=False),
    }  # fmt: skip


def _svd() -> dict[str, Any]:
    decoder = made(
        "AutoencoderKLTemporalDecoder", block_out_channels=(32, 64), latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2,
    )  # fmt: skip
    return {
        "vae": decoder, **vision(side=224),
        "unet": denoiser("UNetSpatioTemporalConditionModel", cross_attention_dim=32),
        "scheduler": scheduler("EulerDiscrete", prediction_type="v_prediction", use_karras_sigmas=True),
    }  # fmt: skip


def _unconditional(name: str, **config: Any) -> dict[str, Any]:
    return {"unet": denoiser("UNet2DModel"), "scheduler": scheduler(name, **config)}


def _movq() -> Any:
    return made(
        "VQModel", block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), latent_channels=4, num_vq_embeddings=12,
        vq_embed_dim=4, norm_num_groups=8, norm_type="spatial",
    )  # fmt: skip


def _kandinsky22(in_channels: int = 4, **config: Any) -> dict[str, Any]:
    unet = made(
        "UNet2DConditionModel", in_channels=in_channels, out_channels=8, block_out_channels=(32, 64),
        layers_per_block=1, down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), attention_head_dim=4,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift", norm_num_groups=8,
        cross_attention_dim=32, encoder_hid_dim=24, sample_size=16,
        **{"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", **config},
    )  # fmt: skip
    return {"unet": unet, "movq": _movq(), "scheduler": scheduler("DDIM", clip_sample=False)}


def _embeds(rows: int = 1, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def _hint() -> torch.Tensor:
    return torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2))


_EMBEDDED: dict[str, Any] = {
    "image_embeds": _embeds, "negative_image_embeds": lambda: _embeds(seed=1), "height": 64, "width": 64,
}  # fmt: skip


def _prior() -> dict[str, Any]:
    return {
        "image_encoder": vision(16)["image_encoder"], "prior": denoiser("PriorTransformer", num_embeddings=16),
        "tokenizer": words(),
        "text_encoder": clip(16, "CLIPTextModelWithProjection"), "image_processor": vision(16)["feature_extractor"],
        "scheduler": scheduler("UnCLIP", variance_type="fixed_small_log", prediction_type="sample"),
    }  # fmt: skip


def _prior_and_decoder() -> dict[str, Any]:
    prior = {
        **_prior(), "prior": denoiser("PriorTransformer", num_embeddings=16, embedding_dim=24),
        "text_encoder": clip(24, "CLIPTextModelWithProjection"), "image_encoder": vision(24)["image_encoder"],
    }  # fmt: skip
    return {**_kandinsky22(), **{f"prior_{name}": part for name, part in prior.items()}}


def _unclip() -> dict[str, Any]:
    decoder = made(
        "UNet2DConditionModel", sample_size=16, in_channels=3, out_channels=6, block_out_channels=(32, 64),
        layers_per_block=1, down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), attention_head_dim=4, norm_num_groups=8,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift", cross_attention_dim=16,
        class_embed_type="identity",
    )  # fmt: skip
    parts: dict[str, Any] = {"decoder": decoder}
    for name in ("super_res_first", "super_res_last"):
        parts[name] = denoiser("UNet2DModel", in_channels=6, sample_size=32)
    for name, kind in (("prior", "sample"), ("decoder", "epsilon"), ("super_res", "epsilon")):
        variance = "fixed_small_log" if kind == "sample" or name == "super_res" else "learned_range"
        parts[f"{name}_scheduler"] = scheduler("UnCLIP", variance_type=variance, prediction_type=kind)
    return {**parts, **{name: _prior()[name] for name in ("prior", "text_encoder", "tokenizer")}}


def _text_projection() -> dict[str, Any]:
    """UnCLIP's, which a saved pipeline does not find again: diffusers names it as if it were one of its own models."""
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    made_of = {"clip_embeddings_dim": 16, "time_embed_dim": 128, "cross_attention_dim": 16}
    return {"text_proj": UnCLIPTextProjModel(clip_extra_context_tokens=2, **made_of).eval()}


def _deepfloyd(in_channels: int = 3, **config: Any) -> dict[str, Any]:
    unet = made(
        "UNet2DConditionModel", sample_size=16, in_channels=in_channels, out_channels=6, block_out_channels=(32, 64),
        layers_per_block=1, norm_num_groups=8, mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=24, encoder_hid_dim=24, attention_head_dim=4, addition_embed_type="text",
        addition_embed_type_num_heads=2, resnet_time_scale_shift="scale_shift", act_fn="gelu", **config,
    )  # fmt: skip
    sampler = scheduler("DDPM", variance_type="learned_range", clip_sample=True)
    return {
        "text_encoder": t5(), "tokenizer": words(), "unet": unet, "scheduler": sampler, "safety_checker": None,
        "feature_extractor": None, "watermarker": None, "requires_safety_checker": False,
    }  # fmt: skip


def _deepfloyd_upscaler() -> dict[str, Any]:
    parts = _deepfloyd(in_channels=6, class_embed_type="timestep", class_embeddings_concat=False)
    return {**parts, "image_noising_scheduler": scheduler("DDPM")}


def _kandinsky3() -> dict[str, Any]:
    return {
        "tokenizer": words(), "text_encoder": t5(), "unet": denoiser("Kandinsky3UNet"), "movq": _movq(),
        "scheduler": scheduler("DDPM", clip_sample=False),
    }  # fmt: skip


def _cascade_prior() -> dict[str, Any]:
    return {
        "tokenizer": words(), "text_encoder": clip(24, "CLIPTextModelWithProjection"), "image_encoder": None,
        "prior": denoiser("StableCascadeUNet", clip_text_pooled_in_channels=24), "feature_extractor": None,
        "scheduler": scheduler("DDPMWuerstchen"),
    }  # fmt: skip


UNET_VIDEO_PIPELINES = [
    tiny_pipeline("AnimateDiffPipeline", _animatediff, **_VIDEO),
    tiny_pipeline("AnimateDiffPAGPipeline", _animatediff, **_VIDEO, pag_scale=2.0),
    tiny_pipeline("AnimateDiffSDXLPipeline", _animatediff_xl, **_VIDEO),
    tiny_pipeline("AnimateDiffControlNetPipeline", _animatediff_controlnet, **_VIDEO, conditioning_frames=clip_of()),
    tiny_pipeline("AnimateDiffSparseControlNetPipeline", _sparse, **_VIDEO, conditioning_frames=[picture()]),
    tiny_pipeline("AnimateDiffVideoToVideoPipeline", _animatediff, **_FRAMES),
    tiny_pipeline(
        "AnimateDiffVideoToVideoControlNetPipeline", _animatediff_controlnet, **_FRAMES, conditioning_frames=clip_of()
    ),
    tiny_pipeline("PIAPipeline", _pia, **_VIDEO, image=picture),
    tiny_pipeline("TextToVideoSDPipeline", _text_to_video, **_VIDEO),
    tiny_pipeline("VideoToVideoSDPipeline", _text_to_video, **_FRAMES),
    tiny_pipeline(
        "StableVideoDiffusionPipeline", _svd, image=picture, height=32, width=32, num_frames=2, decode_chunk_size=2
    ),
    tiny_pipeline("DDPMPipeline", lambda: _unconditional("DDPM"), "np"),
    tiny_pipeline("DDIMPipeline", lambda: _unconditional("DDIM"), "np"),
    tiny_pipeline("PNDMPipeline", lambda: _unconditional("PNDM"), "np"),
    TinyPipeline("ConsistencyModelPipeline", lambda: _unconditional("CMStochasticIterative"), {}, "np"),
    TinyPipeline(
        "DanceDiffusionPipeline",
        lambda: {"unet": denoiser("UNet1DModel", sample_rate=16000), "scheduler": scheduler("IPNDM")},
        {"audio_length_in_s": 64 / 16000}, None,
    ),
    tiny_pipeline("KandinskyV22Pipeline", _kandinsky22, **_EMBEDDED),
    tiny_pipeline("KandinskyV22Img2ImgPipeline", _kandinsky22, **_EMBEDDED, image=picture, strength=0.9),
    tiny_pipeline(
        "KandinskyV22InpaintPipeline", lambda: _kandinsky22(9), **_EMBEDDED, image=lambda: picture(side=64),
        mask_image=lambda: picture_mask(64),
    ),
    tiny_pipeline(
        "KandinskyV22ControlnetPipeline", lambda: _kandinsky22(8, addition_embed_type="image_hint"), "np", **_EMBEDDED,
        hint=_hint,
    ),
    tiny_pipeline("KandinskyV22PriorPipeline", _prior, "pt", **_TEXT),
    tiny_pipeline(
        "KandinskyV22CombinedPipeline", _prior_and_decoder, **_TEXT, height=64, width=64, prior_num_inference_steps=4
    ),
    TinyPipeline(
        "UnCLIPPipeline", _unclip, {**_TEXT, "prior_num_inference_steps": 6, "super_res_num_inference_steps": 6}, "np",
        unsaved=_text_projection, steps="decoder_num_inference_steps",
    ),
    tiny_pipeline("Kandinsky3Pipeline", _kandinsky3, **_TEXT, height=64, width=64),
    tiny_pipeline("IFPipeline", _deepfloyd, "np", **_TEXT, height=16, width=16),
    tiny_pipeline("IFImg2ImgPipeline", _deepfloyd, "np", **_TEXT, image=picture, strength=0.9),
    tiny_pipeline(
        "IFInpaintingPipeline", _deepfloyd, "np", **_TEXT, image=picture, mask_image=picture_mask, strength=0.9
    ),
    tiny_pipeline("IFSuperResolutionPipeline", _deepfloyd_upscaler, "np", **_TEXT, image=picture, height=32, width=32),
    tiny_pipeline("StableCascadePriorPipeline", _cascade_prior, "pt", **_TEXT, height=64, width=64),
]  # fmt: skip
