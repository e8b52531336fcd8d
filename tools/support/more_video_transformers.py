"""The transformers of diffusers that make videos, made small (L to Z)."""

from __future__ import annotations

from typing import Any

from tools.support.tiny_denoiser import TinyDenoiser, constant, given, grid, latent, mask, prompt, timestep
from tools.support.video_transformers import WAN_LIKE, WAN_LIKE_CALL

_LTX: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24,
    "num_layers": 2, "caption_channels": 24,
}  # fmt: skip
_LTX2: dict[str, Any] = {
    **_LTX, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 6, "audio_cross_attention_dim": 12, "rope_double_precision": False,
}  # fmt: skip
_VIDEO_CALL: dict[str, Any] = {
    "hidden_states": latent(2, 4, 3, 8, 8),
    "timestep": timestep(2),
    "encoder_hidden_states": prompt(2, 7, 24),
    "encoder_attention_mask": mask(2, 7),
}


def _empty_cache() -> Any:
    """What Wan-Animate 2's first call fills, and the others read."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return WanAnimate2KVCache(2)


MORE_VIDEO_TRANSFORMERS = [
    TinyDenoiser(
        "LatteTransformer3DModel",
        {
            "sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2,
            "caption_channels": 24, "in_channels": 4, "cross_attention_dim": 16, "out_channels": 8,
            "attention_bias": True, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single", "norm_elementwise_affine": False, "video_length": 3,
        },
        {
            "hidden_states": latent(2, 4, 3, 8, 8), "timestep": timestep(2), "encoder_hidden_states": prompt(2, 7, 24),
            "enable_temporal_attentions": True,
        },
    ),
    TinyDenoiser(
        "LTXVideoTransformer3DModel",
        _LTX,
        {
            **_VIDEO_CALL, "hidden_states": latent(2, 48, 4), "num_frames": 3, "height": 4, "width": 4,
            "rope_interpolation_scale": (8 / 25, 32, 32),
        },
    ),
    TinyDenoiser(
        "LTX2VideoTransformer3DModel",
        _LTX2,
        {
            **_VIDEO_CALL, "hidden_states": latent(2, 48, 4), "audio_hidden_states": latent(2, 9, 4),
            "audio_encoder_hidden_states": prompt(2, 7, 24), "audio_encoder_attention_mask": mask(2, 7),
            "num_frames": 3, "height": 4, "width": 4, "audio_num_frames": 9, "fps": 24.0,
        },
    ),
    TinyDenoiser(
        "MiniMaxH3Transformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "hidden_size": 24, "num_layers": 2,
            "num_refiner_layers": 1, "ffn_dim": 32, "in_channels": 4, "audio_in_channels": 6, "text_dim": 24,
            "freq_dim": 8, "time_embed_hidden_dim": 24, "time_embed_dim": 16, "rope_freq_dim": 2,
        },
        {
            "hidden_states": latent(1, 8, 16), "audio_hidden_states": latent(1, 6, 6),
            "encoder_hidden_states": prompt(1, 7, 24), "timestep": given([0.7, 0.3]),
            "timestep_indices": given([0] * 7 + [1] * 6 + [0] * 8, "int64"),
            "token_tags": given([1] * 7 + [2] * 6 + [0] * 8, "int64"), "position_ids": grid(21, 1, 1),
            "video_indices": given([*range(13, 21)], "int64"), "audio_indices": given([*range(7, 13)], "int64"),
            "text_indices": given([*range(7)], "int64"),
        },
    ),
    TinyDenoiser(
        "MochiTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "pooled_projection_dim": 16,
            "in_channels": 4, "text_embed_dim": 24, "time_embed_dim": 8, "max_sequence_length": 7,
        },
        _VIDEO_CALL,
    ),
    TinyDenoiser(
        "MotifVideoTransformer3DModel",
        {
            "in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1,
            "num_single_layers": 2, "num_decoder_layers": 1, "text_embed_dim": 24, "image_embed_dim": 12,
            "rope_axes_dim": (4, 4, 4),
        },
        {**_VIDEO_CALL, "hidden_states": latent(2, 9, 3, 8, 8)},
    ),
    TinyDenoiser(
        "SanaVideoTransformer3DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24,
            "caption_channels": 24, "sample_size": 8, "rope_max_seq_len": 32,
        },
        {**_VIDEO_CALL, "encoder_attention_mask": constant(1, 2, 7)},
    ),
    TinyDenoiser(
        "SanaWMTransformer3DModel",
        {
            "in_channels": 4, "num_layers": 4, "hidden_size": 48, "num_attention_heads": 2, "linear_head_dim": 24,
            "chunk_plucker_post_attn_blocks": 4, "caption_channels": 24, "image_size": 64, "mlp_ratio": 2.0,
        },
        {
            "hidden_states": latent(2, 4, 3, 4, 4), "timestep": timestep(2, 1, 3),
            "encoder_hidden_states": prompt(2, 1, 7, 24), "mask": constant(1, 2, 7, dtype="int64"),
            "camera_conditions": prompt(2, 3, 20), "chunk_plucker": prompt(2, 48, 3, 4, 4),
        },
    ),
    TinyDenoiser(
        "SanaWMLTX2RefinerTransformer3DModel",
        _LTX2,
        {
            "hidden_states": latent(1, 48, 4), "encoder_hidden_states": prompt(1, 7, 24), "timestep": timestep(1, 48),
            "video_rotary_emb": (prompt(1, 48, 24), prompt(1, 48, 24)), "encoder_attention_mask": constant(1, 1, 7),
        },
    ),
    TinyDenoiser("SkyReelsV2Transformer3DModel", {**WAN_LIKE, "freq_dim": 256}, WAN_LIKE_CALL),
    TinyDenoiser("WanTransformer3DModel", WAN_LIKE, WAN_LIKE_CALL),
    TinyDenoiser(
        "WanAnimateTransformer3DModel",
        {
            **WAN_LIKE, "in_channels": 12, "latent_channels": 4, "image_dim": 16,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}, "motion_encoder_size": 16,
            "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2, "inject_face_latents_blocks": 2,
        },
        {
            **WAN_LIKE_CALL, "hidden_states": latent(1, 12, 3, 8, 8), "encoder_hidden_states_image": prompt(1, 5, 16),
            "pose_hidden_states": prompt(1, 4, 2, 8, 8), "face_pixel_values": prompt(1, 3, 5, 16, 16),
        },
    ),
    TinyDenoiser(
        "WanAnimate2Transformer3DModel",
        {
            "text_len": 8, "in_dim": 8, "dim": 24, "ffn_dim": 48, "freq_dim": 16, "text_dim": 24, "out_dim": 4,
            "num_heads": 2, "num_layers": 2,
        },
        {
            "hidden_states": [latent(4, 3, 4, 4)], "timestep": timestep(1), "encoder_hidden_states": [prompt(7, 24)],
            "condition_latents": [prompt(4, 3, 4, 4)], "encoder_hidden_states_image": prompt(1, 4, 1280),
            "kv_cache": _empty_cache, "kv_cache_mode": "extract", "seq_len": 12,
            "offset_grid_sizes": given([[3, 2, 2]], "int64"),
        },
    ),
    TinyDenoiser(
        "WanVACETransformer3DModel",
        {**WAN_LIKE, "num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 8},
        {
            **WAN_LIKE_CALL, "control_hidden_states": prompt(1, 8, 3, 8, 8),
            "control_hidden_states_scale": given([1.0, 1.0]),
        },
    ),
]  # fmt: skip
