"""The transformers of diffusers that make videos, made small (A to K)."""

from __future__ import annotations

from typing import Any

from tools.support.tiny_denoiser import TinyDenoiser, constant, given, latent, mask, prompt, timestep

# 3 frames of 8 x 8 in patches of 1 x 2 x 2
_VIDEO = latent(1, 4, 3, 8, 8)
WAN_LIKE: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 24,
    "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip
WAN_LIKE_CALL: dict[str, Any] = {
    "hidden_states": _VIDEO,
    "timestep": timestep(1),
    "encoder_hidden_states": prompt(1, 7, 24),
}
_HUNYUAN: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1,
    "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 2, "guidance_embeds": True, "text_embed_dim": 24,
    "pooled_projection_dim": 16, "rope_axes_dim": (4, 4, 4),
}  # fmt: skip
_HUNYUAN_CALL: dict[str, Any] = {
    **WAN_LIKE_CALL,
    "encoder_attention_mask": given([[1, 1, 1, 1, 1, 0, 0]], "int64"),
    "pooled_projections": prompt(1, 16),
    "guidance": constant(6000.0, 1),
}
_COGVIDEOX: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
    "text_embed_dim": 24, "num_layers": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 9,
    "max_text_seq_length": 7, "use_rotary_positional_embeddings": True,
}  # fmt: skip
_COGVIDEOX_CALL: dict[str, Any] = {
    "hidden_states": latent(2, 3, 4, 8, 8),
    "timestep": timestep(2),
    "encoder_hidden_states": prompt(2, 7, 24),
    "image_rotary_emb": (prompt(48, 12), prompt(48, 12)),
}
_KANDINSKY_5: dict[str, Any] = {
    "in_visual_dim": 4, "in_text_dim": 24, "in_text_dim2": 16, "time_dim": 16, "out_visual_dim": 4, "model_dim": 32,
    "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6), "visual_cond": True,
}  # fmt: skip

VIDEO_TRANSFORMERS = [
    TinyDenoiser(
        "AllegroTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "num_layers": 2,
            "cross_attention_dim": 24, "sample_width": 8, "sample_height": 8, "sample_frames": 3,
            "caption_channels": 24,
        },
        {
            "hidden_states": latent(2, 4, 3, 8, 8), "timestep": timestep(2), "encoder_hidden_states": prompt(2, 7, 24),
            "attention_mask": constant(1, 2, 3, 8, 8), "encoder_attention_mask": constant(1, 2, 7),
            "image_rotary_emb": (
                ((prompt(3, 4), prompt(3, 4)), (prompt(4, 4), prompt(4, 4)), (prompt(4, 4), prompt(4, 4))),
                (
                    given([[t for t in range(3) for _ in range(16)]] * 2, "int64"),
                    given([[h for _ in range(3) for h in range(4) for _ in range(4)]] * 2, "int64"),
                    given([[*range(4)] * 12] * 2, "int64"),
                ),
            ),
        },
    ),
    TinyDenoiser(
        "AnyFlowTransformer3DModel",
        {**WAN_LIKE, "freq_dim": 256, "deltatime_type": "r", "gate_value": 0.25},
        {
            "hidden_states": latent(1, 3, 4, 8, 8), "timestep": timestep(1, 3),
            "encoder_hidden_states": prompt(1, 7, 24), "r_timestep": timestep(1, 3, value=400),
        },
    ),
    TinyDenoiser(
        "AnyFlowFARTransformer3DModel",
        {
            **WAN_LIKE, "freq_dim": 256, "deltatime_type": "r", "gate_value": 0.25, "compressed_patch_size": (1, 4, 4),
            "full_chunk_limit": 3,
        },
        {
            "hidden_states": latent(1, 4, 4, 8, 8), "timestep": timestep(1, 4),
            "encoder_hidden_states": prompt(1, 7, 24), "r_timestep": timestep(1, 4, value=400),
            "chunk_partition": [2, 2],
        },
    ),
    TinyDenoiser("ChronoEditTransformer3DModel", {**WAN_LIKE, "rope_temporal_skip_len": 8}, WAN_LIKE_CALL),
    TinyDenoiser("CogVideoXTransformer3DModel", _COGVIDEOX, _COGVIDEOX_CALL),
    TinyDenoiser(
        "ConsisIDTransformer3DModel",
        {
            **_COGVIDEOX, "cross_attn_interval": 1, "is_train_face": True, "cross_attn_dim_head": 8,
            "cross_attn_num_heads": 2, "LFE_id_dim": 6, "LFE_vit_dim": 6, "LFE_depth": 5, "LFE_dim_head": 8,
            "LFE_num_heads": 2, "LFE_num_id_token": 1, "LFE_num_querie": 2, "LFE_output_dim": 16, "LFE_ff_mult": 1,
            "LFE_num_scale": 1,
        },
        {**_COGVIDEOX_CALL, "id_vit_hidden": [prompt(2, 3, 6)], "id_cond": prompt(2, 6)},
    ),
    TinyDenoiser(
        "CosmosTransformer3DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
            "mlp_ratio": 2, "text_embed_dim": 24, "adaln_lora_dim": 4, "max_size": (4, 16, 16),
            "extra_pos_embed_type": "learnable", "concat_padding_mask": False,
        },
        {**WAN_LIKE_CALL, "fps": 24},
    ),
    TinyDenoiser(
        "Cosmos3OmniTransformer",
        {
            "head_dim": 12, "hidden_size": 24, "intermediate_size": 48, "latent_channel": 4, "latent_patch_size": 1,
            "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "patch_latent_dim": 4,
            "rope_axes_dim": [2, 2, 2], "vocab_size": 32,
        },
        {
            "input_ids": given([1, 2, 3], "int64"), "text_indexes": given([0, 1, 2], "int64"),
            "position_ids": given([[*range(19)]] * 3, "int64"), "und_len": 3, "sequence_length": 19,
            "vision_tokens": [latent(1, 4, 1, 4, 4)], "vision_token_shapes": [(1, 4, 4)],
            "vision_sequence_indexes": given([*range(3, 19)], "int64"),
            "vision_mse_loss_indexes": given([*range(3, 19)], "int64"), "vision_timesteps": timestep(16),
            "vision_noisy_frame_indexes": [given([0], "int64")],
        },
    ),
    TinyDenoiser(
        "EasyAnimateTransformer3DModel",
        {
            "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 4, "mmdit_layers": 1, "num_layers": 2,
            "out_channels": 4, "patch_size": 2, "sample_height": 8, "sample_width": 8, "text_embed_dim": 24,
            "time_embed_dim": 8,
        },
        {
            "hidden_states": latent(2, 4, 3, 8, 8), "timestep": timestep(2), "encoder_hidden_states": prompt(2, 7, 24),
        },
    ),
    TinyDenoiser(
        "HeliosTransformer3DModel",
        {
            **{name: value for name, value in WAN_LIKE.items() if name != "rope_max_seq_len"}, "rope_dim": (4, 4, 4),
            "freq_dim": 256, "has_multi_term_memory_patch": True, "guidance_cross_attn": True,
            "zero_history_timestep": True,
        },
        {
            "hidden_states": latent(1, 4, 2, 8, 8), "timestep": timestep(1), "encoder_hidden_states": prompt(1, 7, 24),
            "indices_hidden_states": given([[7.0, 8.0]]), "indices_latents_history_short": given([[6.0]]),
            "indices_latents_history_mid": given([[4.0, 5.0]]),
            "indices_latents_history_long": given([[0.0, 1.0, 2.0, 3.0]]),
            "latents_history_short": prompt(1, 4, 1, 8, 8), "latents_history_mid": prompt(1, 4, 2, 8, 8),
            "latents_history_long": prompt(1, 4, 4, 8, 8),
        },
    ),
    TinyDenoiser("HunyuanVideoTransformer3DModel", _HUNYUAN, _HUNYUAN_CALL),
    TinyDenoiser(
        "HunyuanVideo15Transformer3DModel",
        {
            "in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
            "num_refiner_layers": 1, "text_embed_dim": 24, "text_embed_2_dim": 16, "image_embed_dim": 12,
            "rope_axes_dim": (4, 4, 4), "target_size": 16,
        },
        {
            "hidden_states": latent(1, 9, 3, 4, 4), "timestep": timestep(1), "encoder_hidden_states": prompt(1, 7, 24),
            "encoder_attention_mask": given([[1, 1, 1, 1, 1, 0, 0]], "int64"),
            "encoder_hidden_states_2": prompt(1, 5, 16),
            "encoder_attention_mask_2": given([[0, 0, 0, 0, 0]], "int64"), "image_embeds": constant(0, 1, 3, 12),
        },
    ),
    TinyDenoiser(
        "HunyuanVideoFramepackTransformer3DModel",
        {**_HUNYUAN, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        {
            **_HUNYUAN_CALL, "image_embeds": prompt(1, 5, 16), "indices_latents": given([10, 11, 12], "int64"),
            "latents_clean": prompt(1, 4, 2, 8, 8), "indices_latents_clean": given([0, 9], "int64"),
            "latents_history_2x": prompt(1, 4, 2, 8, 8), "indices_latents_history_2x": given([7, 8], "int64"),
            "latents_history_4x": prompt(1, 4, 4, 8, 8), "indices_latents_history_4x": given([3, 4, 5, 6], "int64"),
        },
    ),
    TinyDenoiser(
        "Kandinsky5Transformer3DModel",
        _KANDINSKY_5,
        {
            "hidden_states": latent(1, 3, 8, 8, 9), "encoder_hidden_states": prompt(1, 7, 24),
            "pooled_projections": prompt(1, 16), "timestep": timestep(1), "scale_factor": (1.0, 2.0, 2.0),
            "visual_rope_pos": [given([0, 1, 2], "int64"), given([*range(4)], "int64"), given([*range(4)], "int64")],
            "text_rope_pos": given([*range(7)], "int64"),
        },
    ),
    TinyDenoiser(
        "Kandinsky6Transformer3DModel",
        {
            **_KANDINSKY_5, "visual_cond": False, "in_audio_dim": 4, "out_audio_dim": 4,
            "scale_factor": (1.0, 2.0, 2.0),
        },
        {
            "hidden_states": latent(1, 3, 8, 8, 4), "encoder_hidden_states": prompt(1, 7, 24),
            "pooled_projections": prompt(1, 16), "timestep": timestep(1), "audio_hidden_states": latent(1, 6, 4),
            "visual_rope_pos": (given([0, 1, 2], "int64"), given([*range(4)], "int64"), given([*range(4)], "int64")),
            "encoder_attention_mask": mask(1, 7),
        },
    ),
    TinyDenoiser(
        "Kandinsky6SRTransformer3DModel",
        {
            "in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 16, "model_dim": 32, "ff_dim": 48,
            "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
        },
        {"hidden_states": latent(1, 2, 8, 8, 9), "timestep": timestep(1)},
    ),
]  # fmt: skip
