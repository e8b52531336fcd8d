"""More pipelines whose guidance takes two calls of their denoiser or more, made small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tools.support.image_pipelines import embedding, flow, flux2_vae, ones, qwen_vae, shifted_vae
from tools.support.parts import clip_of, denoiser, made, picture, picture_mask, vision
from tools.support.tiny_pipeline import TinyPipeline
from tools.support.video_pipelines import eighth, hunyuan_vae, unipc, wan_vae

_SIZED: dict[str, Any] = {"prompt": None, "height": 32, "width": 32}
_ENCODERS = ("text_encoder", "tokenizer")
_TWO_ENCODERS = (*_ENCODERS, "text_encoder_2", "tokenizer_2")


def _texts(*shape: int, name: str = "", masks: bool = False) -> dict[str, Any]:
    """An encoded prompt, and another one to guide away from."""
    texts: dict[str, Any] = {
        f"prompt_embeds{name}": embedding(*shape), f"negative_prompt_embeds{name}": embedding(*shape, seed=1)
    }  # fmt: skip
    if masks:
        texts |= {f"prompt_embeds_mask{name}": ones(*shape[:2]), f"negative_prompt_embeds_mask{name}": ones(*shape[:2])}
    return texts


def _all(*shape: int) -> Callable[[], torch.Tensor]:
    """Makes a mask of an encoded prompt, of truths."""
    return lambda: torch.ones(shape, dtype=torch.bool)


def _parts(
    name: str, coder: Callable[[], Any], sampler: Callable[[], Any] = flow, **others: Any
) -> Callable[[], dict[str, Any]]:
    """A transformer ("config" has changes to it), an autoencoder, a scheduler and others, which functions may make."""
    config = others.pop("config", {})
    return lambda: {
        "transformer": denoiser(name, **config), "vae": coder(), "scheduler": sampler(),
        **{key: value() if callable(value) else value for key, value in others.items()},
    }  # fmt: skip


def _karras() -> Any:
    return flow(use_karras_sigmas=True)


def _guider(name: str = "ClassifierFreeGuidance", **config: Any) -> Any:
    import diffusers

    return getattr(diffusers, name)(**config)


class _Unchecked(nn.Module):
    """In the place of Cosmos' safety checker, which is a package of its own: finds nothing."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, _prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def _qwen_edit_vae() -> Any:
    """One that makes little of the square mega-pixel that the pipelines scale an image to."""
    return qwen_vae(5)


def _hunyuan15_vae() -> Any:
    return made(
        "AutoencoderKLHunyuanVideo15", latent_channels=4, block_out_channels=(16, 16), layers_per_block=1,
        spatial_compression_ratio=4, temporal_compression_ratio=2, downsample_match_channel=False,
        upsample_match_channel=False,
    )  # fmt: skip


def _hunyuan_image_vae() -> Any:
    return made(
        "AutoencoderKLHunyuanImage", in_channels=3, out_channels=3, latent_channels=8, layers_per_block=1,
        block_out_channels=(32, 64, 64, 64), scaling_factor=0.5, spatial_compression_ratio=8, sample_size=32,
    )  # fmt: skip


def _ltx2() -> dict[str, Any]:
    coder = made(
        "AutoencoderKLLTX2Video", latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,),
        layers_per_block=(1,), decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), patch_size=1,
        decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False), downsample_type=("spatial",),
        upsample_residual=(False,), upsample_factor=(1,), timestep_conditioning=False, patch_size_t=1,
    )  # fmt: skip
    audio = made(
        "AutoencoderKLLTX2Audio", base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, in_channels=2,
        resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", mid_block_add_attention=False,
        mel_bins=8,
    )  # fmt: skip
    return {
        "transformer": denoiser("LTX2VideoTransformer3DModel", cross_attention_dim=24), "vae": coder,
        "audio_vae": audio, "scheduler": flow(), "connectors": _connectors(), "vocoder": _vocoder(),
    }  # fmt: skip


def _connectors() -> Any:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    return LTX2TextConnectors(
        caption_channels=24, text_proj_in_factor=2, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=12, video_connector_num_layers=1, connector_rope_base_seq_len=32,
        video_connector_num_learnable_registers=None, audio_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2, audio_connector_attention_head_dim=12, audio_connector_num_layers=1,
        rope_double_precision=False,
    ).eval()  # fmt: skip


def _vocoder() -> Any:
    from diffusers.pipelines.ltx2 import LTX2Vocoder

    return LTX2Vocoder(
        in_channels=16, hidden_channels=8, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]],
    ).eval()  # fmt: skip


def _hunyuan_parts(channels: int, **config: Any) -> Callable[[], dict[str, Any]]:
    return _parts(
        "HunyuanVideoTransformer3DModel",
        hunyuan_vae,
        config={"in_channels": channels, "guidance_embeds": False, **config},
    )


_KANDINSKY: dict[str, Any] = {
    "prompt": None, "height": 32, "width": 32, "guidance_scale": 4.0,
    **_texts(1, 7, 24, name="_qwen"), **_texts(1, 16, name="_clip"),
    "prompt_cu_seqlens": lambda: torch.tensor([0, 7], dtype=torch.int32),
    "negative_prompt_cu_seqlens": lambda: torch.tensor([0, 7], dtype=torch.int32),
}  # fmt: skip
_QWEN: dict[str, Any] = {**_SIZED, **_texts(1, 7, 24, masks=True), "true_cfg_scale": 3.0}
_TRUE_VIDEO: dict[str, Any] = {
    **_SIZED, "num_frames": 5, "true_cfg_scale": 3.0, **_texts(1, 7, 24), "image": picture,
    "pooled_prompt_embeds": embedding(1, 16), "negative_pooled_prompt_embeds": embedding(1, 16, seed=1),
    "prompt_attention_mask": ones(1, 7), "negative_prompt_attention_mask": ones(1, 7),
}  # fmt: skip
_VIDEO: dict[str, Any] = {**_SIZED, "num_frames": 5, **_texts(1, 7, 24)}
_LTX2: dict[str, Any] = {
    **_VIDEO, **_texts(1, 7, 48), "spatio_temporal_guidance_blocks": [1], "prompt_attention_mask": ones(1, 7),
    "negative_prompt_attention_mask": ones(1, 7),
}  # fmt: skip
_LTX2_ENCODERS = (*_ENCODERS, "processor", "prompt_enhancer", "duration_head")
_SEEN: dict[str, Any] = {
    "image_encoder": lambda: vision(16, "CLIPVisionModel")["image_encoder"],
    "image_processor": lambda: vision(16)["feature_extractor"],
}

GUIDED_PIPELINES = [
    TinyPipeline(
        "Krea2Pipeline", _parts("Krea2Transformer2DModel", qwen_vae),
        {**_SIZED, **_texts(1, 7, 3, 16), "prompt_embeds_mask": _all(1, 7), "negative_prompt_embeds_mask": _all(1, 7)},
        left_out=_ENCODERS,
    ),
    TinyPipeline(
        "Flux2KleinInpaintPipeline",
        _parts("Flux2Transformer2DModel", flux2_vae, config={"guidance_embeds": False}),
        {**_SIZED, **_texts(1, 7, 24), "image": picture, "mask_image": picture_mask, "strength": 0.9},
        left_out=_ENCODERS,
    ),
    TinyPipeline(
        "HunyuanVideo15Pipeline",
        _parts("HunyuanVideo15Transformer3DModel", _hunyuan15_vae, guider=lambda: _guider(guidance_scale=4.0)),
        {**_SIZED, "num_frames": 5, **_texts(1, 7, 24, masks=True), **_texts(1, 5, 16, name="_2"),
         "prompt_embeds_mask_2": ones(1, 5), "negative_prompt_embeds_mask_2": ones(1, 5)},
        left_out=_TWO_ENCODERS,
    ),
    TinyPipeline(
        "HunyuanImagePipeline",
        _parts(
            "HunyuanImageTransformer2DModel", _hunyuan_image_vae,
            guider=lambda: _guider("AdaptiveProjectedMixGuidance", adaptive_projected_guidance_start_step=2),
            ocr_guider=lambda: _guider("AdaptiveProjectedMixGuidance", adaptive_projected_guidance_start_step=3),
        ),
        {**_SIZED, **_texts(1, 7, 24, masks=True), **_texts(1, 5, 12, name="_2"),
         "prompt_embeds_mask_2": ones(1, 5), "negative_prompt_embeds_mask_2": ones(1, 5)},
        left_out=_TWO_ENCODERS,
    ),
    TinyPipeline(
        "MotifVideoPipeline",
        _parts("MotifVideoTransformer3DModel", wan_vae, guider=lambda: _guider(guidance_scale=4.0),
               feature_extractor=None),
        {**_VIDEO, "prompt_attention_mask": ones(1, 7), "negative_prompt_attention_mask": ones(1, 7)},
        left_out=_ENCODERS,
    ),
    TinyPipeline(
        "Kandinsky5T2IPipeline",
        _parts("Kandinsky5Transformer3DModel", eighth, config={"visual_cond": False}), _KANDINSKY,
        left_out=_TWO_ENCODERS,
    ),
    TinyPipeline(
        "Kandinsky5I2IPipeline", _parts("Kandinsky5Transformer3DModel", eighth), {**_KANDINSKY, "image": picture},
        left_out=_TWO_ENCODERS,
    ),
    TinyPipeline(
        "Kandinsky5I2VPipeline", _parts("Kandinsky5Transformer3DModel", hunyuan_vae),
        {**_KANDINSKY, "image": picture, "num_frames": 21}, left_out=_TWO_ENCODERS,
    ),
    TinyPipeline(
        "QwenImageEditPipeline", _parts("QwenImageTransformer2DModel", _qwen_edit_vae),
        {**_QWEN, "height": 128, "width": 128, "image": picture},
        left_out=(*_ENCODERS, "processor"),
    ),
    TinyPipeline(
        "QwenImageEditPlusPipeline", _parts("QwenImageTransformer2DModel", _qwen_edit_vae),
        {**_QWEN, "height": 128, "width": 128, "image": picture},
        left_out=(*_ENCODERS, "processor"),
    ),
    TinyPipeline(
        "QwenImageEditInpaintPipeline", _parts("QwenImageTransformer2DModel", _qwen_edit_vae),
        {**_QWEN, "image": picture, "mask_image": picture_mask, "strength": 0.9},
        left_out=(*_ENCODERS, "processor"),
    ),
    TinyPipeline(
        "Cosmos2TextToImagePipeline", _parts("CosmosTransformer3DModel", wan_vae, _karras),
        {**_SIZED, **_texts(1, 7, 24)},
        left_out=_ENCODERS, unsaved=lambda: {"safety_checker": _Unchecked()},
    ),
    TinyPipeline(
        "Cosmos2VideoToWorldPipeline",
        _parts("CosmosTransformer3DModel", wan_vae, _karras, config={"in_channels": 5}), {**_VIDEO, "image": picture},
        left_out=_ENCODERS, unsaved=lambda: {"safety_checker": _Unchecked()},
    ),
    TinyPipeline(
        "Cosmos2_5_PredictBasePipeline",
        _parts("CosmosTransformer3DModel", wan_vae, unipc, config={"in_channels": 5}), _VIDEO,
        left_out=_ENCODERS, unsaved=lambda: {"safety_checker": _Unchecked()},
    ),
    TinyPipeline(
        "GlmImagePipeline", _parts("GlmImageTransformer2DModel", shifted_vae),
        {**_SIZED, **_texts(1, 7, 24), "guidance_scale": 2.0,
         "prior_token_ids": lambda: torch.arange(64)[None]},
        left_out=(*_ENCODERS, "processor", "vision_language_encoder"),
    ),
    TinyPipeline(
        "JoyImageEditPipeline",
        _parts("JoyImageEditTransformer3DModel", wan_vae, config={"in_channels": 4}),
        {**_SIZED, **_texts(1, 7, 24, masks=True), "image": picture},
        left_out=(*_ENCODERS, "processor"),
    ),
    TinyPipeline(
        "BriaFibo2Pipeline", _parts("BriaFibo2Transformer2DModel", flux2_vae),
        {**_SIZED, **_texts(1, 2, 7, 24), "prompt_embeds_mask": ones(1, 7), "negative_prompt_embeds_mask": ones(1, 7)},
        left_out=("text_encoder", "processor"),
    ),
    TinyPipeline(
        "HunyuanVideoImageToVideoPipeline", _hunyuan_parts(9, image_condition_type="latent_concat"), _TRUE_VIDEO,
        left_out=(*_TWO_ENCODERS, "image_processor"),
    ),
    TinyPipeline(
        "HunyuanSkyreelsImageToVideoPipeline", _hunyuan_parts(8), _TRUE_VIDEO, left_out=_TWO_ENCODERS,
    ),
    TinyPipeline("LTX2Pipeline", _ltx2, _LTX2, left_out=_LTX2_ENCODERS),
    TinyPipeline(
        "LTX2ImageToVideoPipeline", _ltx2, {**_LTX2, "image": picture, "image_crf": 0}, left_out=_LTX2_ENCODERS,
    ),
    TinyPipeline(
        "ChronoEditPipeline",
        _parts("ChronoEditTransformer3DModel", wan_vae, config={"in_channels": 12, "image_dim": 16}, **_SEEN),
        {**_VIDEO, "image": picture}, left_out=_ENCODERS,
    ),
    TinyPipeline(
        "LucyEditPipeline", _parts("WanTransformer3DModel", wan_vae, config={"in_channels": 8}, transformer_2=None),
        {**_VIDEO, "video": clip_of(5)}, left_out=_ENCODERS,
    ),
]  # fmt: skip
