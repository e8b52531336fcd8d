"""The UNets of diffusers, made small."""

from __future__ import annotations

from typing import Any

from tools.support.tiny_denoiser import TinyDenoiser, given, latent, mask, prompt, timestep, tokens

_TWO_LEVELS: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
_CROSS: dict[str, Any] = {
    **_TWO_LEVELS,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
}
_CROSS_3D: dict[str, Any] = {
    **_CROSS,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}

UNETS = [
    TinyDenoiser(
        "UNet1DModel",
        {
            "sample_size": 64, "in_channels": 2, "out_channels": 2, "extra_in_channels": 32,
            "time_embedding_type": "fourier", "use_timestep_embedding": False, "flip_sin_to_cos": True,
            "block_out_channels": (16, 32, 32), "layers_per_block": 1,
            "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
            "up_block_types": ("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
        },
        {"sample": latent(1, 2, 64), "timestep": timestep()},
    ),
    TinyDenoiser(
        "UNet2DModel",
        {
            **_TWO_LEVELS, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 16,
        },
        {"sample": latent(1, 3, 16, 16), "timestep": timestep()},
    ),
    TinyDenoiser(
        "UNet2DConditionModel",
        {
            **_CROSS, "attention_head_dim": 4, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        },
        {
            "sample": latent(2, 4, 16, 16), "timestep": timestep(), "encoder_hidden_states": prompt(2, 7, 24),
            "added_cond_kwargs": {"text_embeds": prompt(2, 16), "time_ids": prompt(2, 6)},
        },
    ),
    TinyDenoiser(
        "UNet3DConditionModel",
        {**_CROSS_3D, "attention_head_dim": 8},
        {"sample": latent(2, 4, 3, 16, 16), "timestep": timestep(), "encoder_hidden_states": prompt(2, 7, 24)},
    ),
    TinyDenoiser(
        "UNetMotionModel",
        {
            **_CROSS, "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"), "num_attention_heads": 4,
            "motion_num_attention_heads": 4,
        },
        {"sample": latent(2, 4, 3, 16, 16), "timestep": timestep(), "encoder_hidden_states": prompt(6, 7, 24)},
    ),
    TinyDenoiser(
        "UNetSpatioTemporalConditionModel",
        {
            "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "num_attention_heads": 4,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "cross_attention_dim": 24,
            "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
        },
        {
            "sample": latent(2, 3, 8, 16, 16), "timestep": timestep(value=1.6),
            "encoder_hidden_states": prompt(2, 1, 24), "added_time_ids": given([[6.0, 127.0, 0.02]] * 2),
        },
    ),
    TinyDenoiser(
        "I2VGenXLUNet",
        {**_CROSS_3D, "attention_head_dim": 8},
        {
            "sample": latent(2, 4, 3, 16, 16), "timestep": timestep(), "fps": given([16, 16], "int64"),
            "image_latents": prompt(2, 4, 3, 16, 16), "image_embeddings": prompt(2, 24),
            "encoder_hidden_states": prompt(2, 7, 24),
        },
    ),
    TinyDenoiser(
        "Kandinsky3UNet",
        {
            "time_embedding_dim": 16, "groups": 4, "attention_head_dim": 8, "layers_per_block": 2,
            "block_out_channels": (16, 32), "cross_attention_dim": 24, "encoder_hid_dim": 24,
        },
        {
            "sample": latent(2, 4, 16, 16), "timestep": timestep(), "encoder_hidden_states": prompt(2, 7, 24),
            "encoder_attention_mask": mask(2, 7),
        },
    ),
    TinyDenoiser(
        "StableCascadeUNet",
        {
            "in_channels": 4, "out_channels": 4, "conditioning_dim": 32, "block_out_channels": (32, 32),
            "num_attention_heads": (2, 2), "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
            "clip_text_in_channels": 24, "clip_text_pooled_in_channels": 24, "clip_image_in_channels": 24,
            "switch_level": (False,),
        },
        {
            "sample": latent(2, 4, 16, 16), "timestep_ratio": timestep(2, value=0.5),
            "clip_text_pooled": prompt(2, 1, 24), "clip_text": prompt(2, 7, 24), "clip_img": prompt(2, 1, 24),
        },
    ),
    TinyDenoiser(
        "UVit2DModel",
        {
            "hidden_size": 32, "cond_embed_dim": 32, "micro_cond_encode_dim": 2, "micro_cond_embed_dim": 10,
            "encoder_hidden_size": 32, "vocab_size": 33, "codebook_size": 32, "in_channels": 32,
            "block_out_channels": 32, "num_res_blocks": 1, "block_num_heads": 2, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32, "sample_size": 16,
        },
        {
            "input_ids": tokens([[[0, 5, 9, 32], [32, 32, 4, 1], [2, 3, 32, 32], [32, 7, 8, 32]]] * 2),
            "encoder_hidden_states": prompt(2, 7, 32), "pooled_text_emb": prompt(2, 32),
            "micro_conds": given([[16.0, 16.0, 0.0, 0.0, 6.0]] * 2),
        },
    ),
    TinyDenoiser(
        "DreamLiteUNetModel",
        {
            "sample_size": 16, "block_out_channels": (32, 64, 64), "layers_per_block": 1, "cross_attention_dim": 24,
            "attention_head_dim": 8, "norm_num_groups": 8,
        },
        {"sample": latent(1, 4, 16, 16), "timestep": timestep(1), "encoder_hidden_states": prompt(1, 7, 24)},
    ),
    TinyDenoiser(
        "pipelines.audioldm2.AudioLDM2UNet2DConditionModel",
        {**_CROSS, "cross_attention_dim": ((None, 16, 24), (None, 16, 24)), "attention_head_dim": 4},
        {
            "sample": latent(2, 4, 16, 8), "timestep": timestep(), "encoder_hidden_states": prompt(2, 5, 16),
            "encoder_hidden_states_1": prompt(2, 7, 24), "encoder_attention_mask_1": mask(2, 7),
        },
    ),
    TinyDenoiser(
        "UNetControlNetXSModel",
        {
            "sample_size": 16, "block_out_channels": (32, 64), "norm_num_groups": 8, "num_attention_heads": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 24,
            "ctrl_block_out_channels": (8, 16), "ctrl_num_attention_heads": 2, "ctrl_max_norm_num_groups": 4,
            "ctrl_conditioning_embedding_out_channels": (8, 8),
        },
        {
            "sample": latent(2, 4, 16, 16), "timestep": timestep(), "encoder_hidden_states": prompt(2, 7, 24),
            "controlnet_cond": prompt(2, 3, 32, 32), "conditioning_scale": 1.0,
        },
    ),
]  # fmt: skip
