"""The transformers of diffusers that make images, made small (A to H)."""

from __future__ import annotations

from typing import Any

from tools.support.tiny_denoiser import TinyDenoiser, constant, given, grid, latent, mask, prompt, timestep

# 4 x 4 tokens of 16 channels, and 7 of text, as FLUX.1's kin take them.
FLUX_LIKE: dict[str, Any] = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip
FLUX_LIKE_CALL: dict[str, Any] = {
    "hidden_states": latent(1, 16, 16),
    "timestep": timestep(1, value=0.5),
    "encoder_hidden_states": prompt(1, 7, 24),
    "txt_ids": constant(0, 7, 3),
    "img_ids": grid(1, 4, 4),
}
_SIZE = given([[64.0, 64.0]] * 2)

IMAGE_TRANSFORMERS = [
    TinyDenoiser(
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "attention_head_dim": 8,
            "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 24, "pos_embed_max_size": 64,
        },
        {
            "hidden_states": latent(2, 4, 8, 8), "encoder_hidden_states": prompt(2, 7, 24),
            "timestep": timestep(2, value=0.5),
        },
    ),
    TinyDenoiser(
        "BriaTransformer2DModel",
        {**FLUX_LIKE, "axes_dims_rope": [0, 8, 8], "pooled_projection_dim": None},
        {**FLUX_LIKE_CALL, "timestep": timestep(1)},
    ),
    TinyDenoiser(
        "BriaFiboTransformer2DModel",
        {**FLUX_LIKE, "axes_dims_rope": [0, 8, 8], "text_encoder_dim": 12, "pooled_projection_dim": None},
        {**FLUX_LIKE_CALL, "timestep": timestep(1), "text_encoder_layers": [prompt(1, 7, 12) for _ in range(4)]},
    ),
    TinyDenoiser(
        "BriaFibo2Transformer2DModel",
        {
            "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "cap_feat_dim": 24,
            "injection_layer_ids": (1,), "perceiver_num_layers": 1, "min_num_gist_tokens": 4, "max_num_gist_tokens": 8,
            "gist_step": 4, "gist_min_text_len": 4, "gist_max_text_len": 32, "axes_dims": (4, 4, 8),
            "axes_lens": (64, 32, 32),
        },
        {
            "hidden_states": latent(1, 4, 8, 8), "timestep": timestep(1, value=0.5),
            "encoder_hidden_states": prompt(1, 2, 7, 24),
        },
    ),
    TinyDenoiser(
        "ChromaTransformer2DModel",
        {**FLUX_LIKE, "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        {**FLUX_LIKE_CALL, "attention_mask": constant(1, 1, 23)},
    ),
    TinyDenoiser(
        "CogView3PlusTransformer2DModel",
        {
            "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "out_channels": 4,
            "text_embed_dim": 24, "time_embed_dim": 16, "condition_dim": 4, "pos_embed_max_size": 16, "sample_size": 8,
        },
        {
            "hidden_states": latent(2, 4, 8, 8), "encoder_hidden_states": prompt(2, 7, 24), "timestep": timestep(2),
            "original_size": _SIZE, "target_size": _SIZE, "crop_coords": constant(0, 2, 2),
        },
    ),
    TinyDenoiser(
        "CogView4Transformer2DModel",
        {
            "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "out_channels": 4,
            "text_embed_dim": 24, "time_embed_dim": 16, "condition_dim": 4, "sample_size": 8,
        },
        {
            "hidden_states": latent(2, 4, 8, 8), "encoder_hidden_states": prompt(2, 7, 24), "timestep": timestep(2),
            "original_size": _SIZE, "target_size": _SIZE, "crop_coords": constant(0, 2, 2),
        },
    ),
    TinyDenoiser(
        "DiTTransformer2DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
            "sample_size": 8, "num_embeds_ada_norm": 10,
        },
        {"hidden_states": latent(2, 4, 8, 8), "timestep": timestep(2), "class_labels": given([3, 9], "int64")},
    ),
    TinyDenoiser(
        "ErnieImageTransformer2DModel",
        {
            "hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 48, "in_channels": 8,
            "out_channels": 8, "text_in_dim": 24, "rope_axes_dim": (8, 4, 4),
        },
        {
            "hidden_states": latent(2, 8, 4, 4), "timestep": timestep(2), "text_bth": prompt(2, 7, 24),
            "text_lens": given([7, 3], "int64"),
        },
    ),
    TinyDenoiser(
        "FluxTransformer2DModel",
        {**FLUX_LIKE, "pooled_projection_dim": 24, "guidance_embeds": True},
        {**FLUX_LIKE_CALL, "pooled_projections": prompt(1, 24), "guidance": constant(3.5, 1)},
    ),
    TinyDenoiser(
        "Flux2Transformer2DModel",
        {**FLUX_LIKE, "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": True},
        {
            **FLUX_LIKE_CALL, "img_ids": grid(1, 4, 4, 1, rows=1), "txt_ids": grid(1, 1, 1, 7, rows=1),
            "guidance": constant(4.0, 1),
        },
    ),
    TinyDenoiser(
        "Flux3Transformer2DModel",
        {**FLUX_LIKE, "axes_dims_rope": (4, 4, 4, 4), "cond_in_channels": 16},
        {**FLUX_LIKE_CALL, "img_ids": grid(1, 4, 4, 1), "txt_ids": grid(1, 1, 1, 7)},
    ),
    TinyDenoiser(
        "GlmImageTransformer2DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
            "text_embed_dim": 24, "time_embed_dim": 16, "condition_dim": 8, "prior_vq_quantizer_codebook_size": 64,
        },
        {
            "hidden_states": latent(1, 4, 8, 8), "encoder_hidden_states": prompt(1, 7, 24),
            "prior_token_id": given([[*range(16)]], "int64"), "prior_token_drop": constant(False, 1, 16, dtype="bool"),
            "timestep": timestep(1), "target_size": given([[64.0, 64.0]]), "crop_coords": constant(0, 1, 2),
        },
    ),
    TinyDenoiser(
        "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
            "attention_head_dim": 8, "num_attention_heads": 4, "caption_channels": [24, 12], "text_emb_dim": 16,
            "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (4, 2, 2),
            "max_resolution": (8, 8), "llama_layers": (0, 1),
        },
        {
            "hidden_states": latent(2, 4, 8, 8), "timesteps": timestep(2), "encoder_hidden_states_t5": prompt(2, 7, 24),
            "encoder_hidden_states_llama3": prompt(2, 2, 7, 12), "pooled_embeds": prompt(2, 16),
        },
    ),
    TinyDenoiser(
        "HunyuanDiT2DModel",
        {
            "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
            "num_attention_heads": 2, "cross_attention_dim": 12, "cross_attention_dim_t5": 24,
            "pooled_projection_dim": 8, "hidden_size": 16, "text_len": 5, "text_len_t5": 7,
            "activation_fn": "gelu-approximate",
        },
        {
            "hidden_states": latent(2, 4, 8, 8), "timestep": timestep(2), "encoder_hidden_states": prompt(2, 5, 12),
            "text_embedding_mask": mask(2, 5), "encoder_hidden_states_t5": prompt(2, 7, 24),
            "text_embedding_mask_t5": mask(2, 7), "image_meta_size": constant(64, 2, 6),
            "style": constant(0, 2, dtype="int64"), "image_rotary_emb": (prompt(16, 8), prompt(16, 8)),
        },
    ),
    TinyDenoiser(
        "HunyuanImageTransformer2DModel",
        {
            "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
            "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 24, "text_embed_2_dim": 12,
            "rope_axes_dim": (8, 8),
        },
        {
            "hidden_states": latent(1, 8, 4, 4), "timestep": timestep(1), "encoder_hidden_states": prompt(1, 7, 24),
            "encoder_attention_mask": mask(1, 7), "encoder_hidden_states_2": prompt(1, 5, 12),
            "encoder_attention_mask_2": mask(1, 5),
        },
    ),
]  # fmt: skip
