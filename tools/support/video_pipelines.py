"""The pipelines that make videos or sound with transformers, made small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tools.small_pipelines import vae
from tools.support.image_pipelines import embedding, flow, ones
from tools.support.parts import clip_of, denoiser, made, picture, scheduler, t5, vision, words
from tools.support.tiny_pipeline import TinyPipeline, tiny_pipeline

_TEXT: dict[str, Any] = {"prompt": "a red cat", "max_sequence_length": 16}
_VIDEO: dict[str, Any] = {**_TEXT, "height": 32, "width": 32, "num_frames": 5}
_SIZED: dict[str, Any] = {
    "prompt": None, "height": 32, "width": 32, "prompt_embeds": embedding(1, 7, 24),
    "negative_prompt_embeds": embedding(1, 7, 24, seed=1), "negative_prompt": None,
}  # fmt: skip
_ENCODED: dict[str, Any] = {
    **_SIZED, "num_frames": 5,
}  # fmt: skip
_MASKS: dict[str, Any] = {"prompt_attention_mask": ones(1, 7), "negative_prompt_attention_mask": ones(1, 7)}


def unipc() -> Any:
    """UniPC for flow matching."""
    return scheduler("UniPCMultistep", prediction_type="flow_prediction", use_flow_sigmas=True)


def wan_vae() -> Any:
    """Wan's autoencoder."""
    return made(
        "AutoencoderKLWan", base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, temperal_downsample=[False, True, True],
    )  # fmt: skip


def _blocks(kind: str, latents: int = 4) -> dict[str, Any]:
    return {
        "down_block_types": (f"{kind}DownBlock3D",) * 4, "up_block_types": (f"{kind}UpBlock3D",) * 4,
        "block_out_channels": (8, 8, 8, 8), "latent_channels": latents, "layers_per_block": 1, "norm_num_groups": 2,
    }  # fmt: skip


def _cogvideox_vae() -> Any:
    return made("AutoencoderKLCogVideoX", **_blocks("CogVideoX"), temporal_compression_ratio=4)


def _allegro_vae() -> Any:
    return made("AutoencoderKLAllegro", **_blocks("Allegro"), temporal_compression_ratio=4)


def hunyuan_vae() -> Any:
    """HunyuanVideo's autoencoder."""
    return made("AutoencoderKLHunyuanVideo", **_blocks("HunyuanVideo"), mid_block_add_attention=True)


def _magvit_vae() -> Any:
    blocks = _blocks("SpatialTemporal")
    blocks["down_block_types"] = ("SpatialDownBlock3D", *blocks["down_block_types"][1:])
    blocks["up_block_types"] = ("SpatialUpBlock3D", *blocks["up_block_types"][1:])
    return made("AutoencoderKLMagvit", **blocks, spatial_group_norm=False)


def _ltx_vae() -> Any:
    return made(
        "AutoencoderKLLTXVideo", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=(1,) * 5,
        decoder_block_out_channels=(8, 8, 8, 8), decoder_layers_per_block=(1,) * 5, patch_size=1, patch_size_t=1,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
    )  # fmt: skip


def _mochi_vae() -> Any:
    return made(
        "AutoencoderKLMochi", latent_channels=4, encoder_block_out_channels=(32,) * 4, latents_mean=[0.0] * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5, latents_std=[1.0] * 4,
    )  # fmt: skip


def _parts(
    name: str, coder: Callable[[], Any], sampler: Callable[[], Any] = flow, **transformer: Any
) -> Callable[[], dict[str, Any]]:
    """A transformer, an autoencoder and a T5 encoder."""
    return lambda: {
        "transformer": denoiser(name, **transformer), "vae": coder(), "scheduler": sampler(), "text_encoder": t5(),
        "tokenizer": words(),
    }  # fmt: skip


def _without_encoder(
    name: str, coder: Callable[[], Any], sampler: Callable[[], Any] = flow, **transformer: Any
) -> Callable[[], dict[str, Any]]:
    """A transformer and an autoencoder, for prompts that are encoded already."""
    return lambda: {"transformer": denoiser(name, **transformer), "vae": coder(), "scheduler": sampler()}


def _diffusion() -> Any:
    return scheduler("DDIM", clip_sample=False)


def _ancestral() -> Any:
    return scheduler("EulerAncestralDiscrete")


def _ddim() -> Any:
    return scheduler("CogVideoXDDIM")


def _cogvideox(**transformer: Any) -> Callable[[], dict[str, Any]]:
    return _parts(
        "CogVideoXTransformer3DModel",
        _cogvideox_vae,
        _ddim,
        max_text_seq_length=16,
        attention_head_dim=16,
        **transformer,
    )


def _wan(**transformer: Any) -> Callable[[], dict[str, Any]]:
    return _parts("WanTransformer3DModel", wan_vae, unipc, **transformer)


def _wan_of_image() -> dict[str, Any]:
    seen = vision(16, "CLIPVisionModel")
    parts = _wan(in_channels=12, image_dim=16)()
    return {**parts, "image_encoder": seen["image_encoder"], "image_processor": seen["feature_extractor"]}


def _sky_reels_of_image() -> dict[str, Any]:
    transformer = denoiser("SkyReelsV2Transformer3DModel", in_channels=12, image_dim=16)
    return {**_wan_of_image(), "transformer": transformer}


def _stable_audio() -> dict[str, Any]:
    coder = made(
        "AutoencoderOobleck", encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3,
        decoder_input_channels=8, audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip
    from diffusers import StableAudioProjectionModel

    projection = StableAudioProjectionModel(text_encoder_dim=24, conditioning_dim=24, min_value=0, max_value=32)
    return {
        "vae": coder, "text_encoder": t5(), "tokenizer": words(), "projection_model": projection.eval(),
        "transformer": denoiser("StableAudioDiTModel", global_states_input_dim=48),
        "scheduler": scheduler("EDMEuler", sigma_min=0.3, sigma_max=100.0),
    }  # fmt: skip


def _bert(width: int = 12) -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=len(words()), hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
        )
    ).eval()


def eighth() -> Any:
    """An autoencoder that makes an eighth of an image's sides, as HunyuanDiT's pipeline takes for granted."""
    return vae(
        block_out_channels=(8, 8, 8, 16), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def _hunyuandit() -> dict[str, Any]:
    return {
        "transformer": denoiser("HunyuanDiT2DModel", text_len=77, text_len_t5=256), "vae": eighth(),
        "text_encoder": _bert(), "tokenizer": words(), "text_encoder_2": t5(), "tokenizer_2": words(),
        "scheduler": scheduler("DDPM"), "safety_checker": None, "feature_extractor": None,
    }  # fmt: skip


_HUNYUAN: dict[str, Any] = {
    "prompt": None, "height": 32, "width": 32, "num_frames": 5, "prompt_embeds": embedding(1, 7, 24),
    "pooled_prompt_embeds": embedding(1, 16), "prompt_attention_mask": ones(1, 7), "true_cfg_scale": 3.0,
    "negative_prompt_embeds": embedding(1, 7, 24, seed=1), "negative_pooled_prompt_embeds": embedding(1, 16, seed=1),
    "negative_prompt_attention_mask": ones(1, 7),
}  # fmt: skip
_KANDINSKY_5: dict[str, Any] = {
    "prompt": None, "prompt_embeds_qwen": embedding(1, 7, 24), "prompt_embeds_clip": embedding(1, 16),
    "height": 32, "width": 32,
    "prompt_cu_seqlens": lambda: torch.tensor([0, 7], dtype=torch.int32), "num_frames": 5,
    "negative_prompt_embeds_qwen": embedding(1, 5, 24, seed=1), "negative_prompt_embeds_clip": embedding(1, 16, seed=1),
    "negative_prompt_cu_seqlens": lambda: torch.tensor([0, 5], dtype=torch.int32),
}  # fmt: skip
_SECOND = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

_SKY_REELS = _parts("SkyReelsV2Transformer3DModel", wan_vae, unipc)
_FORCING: dict[str, Any] = {**_ENCODED, "num_frames": 9, "base_num_frames": 9}

VIDEO_PIPELINES = [
    tiny_pipeline("WanPipeline", _wan(), **_VIDEO),
    tiny_pipeline("WanVideoToVideoPipeline", _wan(), **_SIZED, video=clip_of(5), strength=0.9),
    tiny_pipeline("WanImageToVideoPipeline", _wan_of_image, **_ENCODED, image=picture),
    tiny_pipeline(
        "WanVACEPipeline", _parts("WanVACETransformer3DModel", wan_vae, unipc, vace_in_channels=72), **_ENCODED
    ),
    tiny_pipeline("SkyReelsV2Pipeline", _SKY_REELS, **_ENCODED),
    tiny_pipeline("SkyReelsV2ImageToVideoPipeline", _sky_reels_of_image, **_ENCODED, image=picture),
    tiny_pipeline("SkyReelsV2DiffusionForcingPipeline", _SKY_REELS, **_FORCING),
    tiny_pipeline("SkyReelsV2DiffusionForcingImageToVideoPipeline", _SKY_REELS, **_FORCING, image=picture),
    tiny_pipeline("SkyReelsV2DiffusionForcingVideoToVideoPipeline", _SKY_REELS, **_FORCING, video=clip_of(5),
                  overlap_history=5),
    tiny_pipeline(
        "LattePipeline", _parts("LatteTransformer3DModel", vae, _diffusion, sample_size=16), prompt="a red cat",
        height=32, width=32, video_length=3, clean_caption=False,
    ),
    tiny_pipeline("CogVideoXPipeline", _cogvideox(), **_VIDEO),
    tiny_pipeline("CogVideoXVideoToVideoPipeline", _cogvideox(), **_TEXT, height=32, width=32, video=clip_of(5),
                  strength=0.9),
    tiny_pipeline("CogVideoXImageToVideoPipeline", _cogvideox(in_channels=8), **_VIDEO, image=picture),
    tiny_pipeline("CogVideoXFunControlPipeline", _cogvideox(in_channels=8), **_TEXT, height=32, width=32,
                  control_video=clip_of(5)),
    tiny_pipeline("LTXPipeline", _parts("LTXVideoTransformer3DModel", _ltx_vae), **{**_VIDEO, "num_frames": 9}),
    tiny_pipeline(
        "LTXImageToVideoPipeline", _parts("LTXVideoTransformer3DModel", _ltx_vae), **{**_VIDEO, "num_frames": 9},
        image=picture,
    ),
    tiny_pipeline(
        "LTXConditionPipeline", _parts("LTXVideoTransformer3DModel", _ltx_vae), **{**_VIDEO, "num_frames": 9},
        image=picture,
    ),
    tiny_pipeline("MochiPipeline", _parts("MochiTransformer3DModel", _mochi_vae, max_sequence_length=16), **_VIDEO),
    tiny_pipeline(
        "AllegroPipeline", _parts("AllegroTransformer3DModel", _allegro_vae, _ancestral), **_VIDEO, clean_caption=False
    ),
    TinyPipeline(
        "SanaVideoPipeline", _without_encoder("SanaVideoTransformer3DModel", wan_vae),
        {**_SIZED, **_MASKS, "frames": 5, "use_resolution_binning": False},
        left_out=("text_encoder", "tokenizer"),
    ),
    TinyPipeline(
        "EasyAnimatePipeline", _without_encoder("EasyAnimateTransformer3DModel", _magvit_vae),
        {**_ENCODED, **_MASKS}, left_out=("text_encoder", "tokenizer"),
    ),
    TinyPipeline(
        "HunyuanVideoPipeline", _without_encoder("HunyuanVideoTransformer3DModel", hunyuan_vae), _HUNYUAN,
        left_out=_SECOND,
    ),
    TinyPipeline(
        "Kandinsky5T2VPipeline", _without_encoder("Kandinsky5Transformer3DModel", hunyuan_vae), _KANDINSKY_5,
        left_out=_SECOND,
    ),
    tiny_pipeline("HunyuanDiTPipeline", _hunyuandit, prompt="a red cat", height=64, width=64,
                  use_resolution_binning=False),
    tiny_pipeline("HunyuanDiTPAGPipeline", _hunyuandit, prompt="a red cat", height=64, width=64,
                  use_resolution_binning=False, pag_scale=2.0),
    tiny_pipeline("StableAudioPipeline", _stable_audio, prompt="a red cat", audio_end_in_s=4.0),
]  # fmt: skip
