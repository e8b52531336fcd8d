"""The transformers of diffusers that make images, made small (I to Z)."""

from __future__ import annotations

from typing import Any

from tools.support.image_transformers import FLUX_LIKE, FLUX_LIKE_CALL
from tools.support.tiny_denoiser import TinyDenoiser, constant, given, grid, latent, mask, prompt, timestep, tokens

# 4 text tokens and then 2 x 2 of the image, in one row of tokens
_IDEOGRAM_TOKENS = [[3] * 4 + [2] * 4]
_QWEN: dict[str, Any] = {
    "in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24,
    "axes_dims_rope": (8, 4, 4),
}  # fmt: skip
_QWEN_CALL: dict[str, Any] = {
    "hidden_states": latent(1, 16, 16),
    "timestep": timestep(1, value=0.5),
    "encoder_hidden_states": prompt(1, 7, 24),
    "encoder_hidden_states_mask": mask(1, 7),
    "img_shapes": [[(1, 4, 4)]],
}
_JOY: dict[str, Any] = {
    "patch_size": [1, 2, 2], "in_channels": 8, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 24,
    "num_layers": 2, "rope_dim_list": [4, 6, 6], "theta": 256,
}  # fmt: skip

MORE_IMAGE_TRANSFORMERS = [
    TinyDenoiser(
        "Ideogram4Transformer2DModel",
        {
            "in_channels": 16, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
            "intermediate_size": 48, "adaln_dim": 16, "llm_features_dim": 24, "mrope_section": (2, 1, 1),
        },
        {
            "hidden_states": latent(1, 8, 16), "encoder_hidden_states": prompt(1, 8, 24),
            "timestep": timestep(1, value=0.5), "segment_ids": constant(1, 1, 8, dtype="int64"),
            "position_ids": grid(1, 2, 4, rows=1, dtype="int64"), "indicator": given(_IDEOGRAM_TOKENS, "int64"),
        },
    ),
    TinyDenoiser(
        "JoyImageEditTransformer3DModel",
        _JOY,
        {
            "hidden_states": latent(1, 8, 1, 4, 4), "encoder_hidden_states": prompt(1, 7, 24),
            "timestep": timestep(1),
        },
    ),
    TinyDenoiser(
        "JoyImageEditPlusTransformer3DModel",
        _JOY,
        {
            "hidden_states": latent(1, 2, 8, 1, 2, 2), "encoder_hidden_states": prompt(1, 7, 24),
            "timestep": timestep(1), "shape_list": [[(1, 1, 1), (1, 1, 1)]],
        },
    ),
    TinyDenoiser(
        "Krea2Transformer2DModel",
        {
            "in_channels": 16, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 48, "timestep_embed_dim": 8, "text_hidden_dim": 16,
            "num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 1,
            "text_intermediate_size": 24, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        {
            "hidden_states": latent(1, 16, 16), "encoder_hidden_states": prompt(1, 7, 3, 16),
            "timestep": timestep(1, value=0.5), "position_ids": grid(1, 1, 23), "encoder_attention_mask": mask(1, 7),
        },
    ),
    TinyDenoiser(
        "LongCatImageTransformer2DModel",
        {**FLUX_LIKE, "pooled_projection_dim": 24},
        {**FLUX_LIKE_CALL, "img_ids": grid(1, 4, 4, start=(1, 7, 7))},
    ),
    TinyDenoiser(
        "LuminaNextDiT2DModel",
        {
            "sample_size": 16, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2,
            "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 16, "cross_attention_dim": 24,
        },
        {
            "hidden_states": latent(2, 4, 16, 16), "timestep": timestep(2, value=0.5),
            "encoder_hidden_states": prompt(2, 7, 24), "encoder_mask": constant(1, 2, 7),
            "image_rotary_emb": prompt(384, 384, 4), "cross_attention_kwargs": {},
        },
    ),
    TinyDenoiser(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 16, "in_channels": 4, "hidden_size": 24, "num_layers": 2, "num_refiner_layers": 1,
            "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2, "axes_dim_rope": (4, 2, 2),
            "axes_lens": (64, 64, 64), "cap_feat_dim": 24,
        },
        {
            "hidden_states": latent(1, 4, 16, 16), "timestep": timestep(1, value=0.5),
            "encoder_hidden_states": prompt(1, 7, 24), "encoder_attention_mask": mask(1, 7),
        },
    ),
    TinyDenoiser(
        "NucleusMoEImageTransformer2DModel",
        {**_QWEN, "out_channels": 4, "capacity_factors": [2.0, 2.0], "moe_enabled": True, "num_experts": 4,
         "moe_intermediate_dim": 24, "dense_moe_strategy": "leave_first_1_dense", "num_key_value_heads": 1},
        _QWEN_CALL,
    ),
    TinyDenoiser(
        "OmniGenTransformer2DModel",
        {
            "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 32,
            "num_layers": 2, "pad_token_id": 0, "vocab_size": 100, "in_channels": 4, "time_step_dim": 4,
            "rope_scaling": {"long_factor": [1, 2], "short_factor": [1, 2]},
        },
        {
            "hidden_states": latent(2, 4, 8, 8), "timestep": timestep(2, value=0.5),
            "input_ids": given([[*range(1, 8)], [*range(11, 18)]], "int64"), "input_img_latents": [],
            "input_image_sizes": {}, "attention_mask": constant(1, 2, 24, 24),
            "position_ids": given([[*range(24)]] * 2, "int64"),
        },
    ),
    TinyDenoiser("OvisImageTransformer2DModel", {**FLUX_LIKE, "out_channels": 16}, FLUX_LIKE_CALL),
    TinyDenoiser(
        "PixArtTransformer2DModel",
        {
            "sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "in_channels": 4,
            "cross_attention_dim": 16, "out_channels": 8, "caption_channels": 24,
        },
        {
            "hidden_states": latent(2, 4, 8, 8), "timestep": timestep(2), "encoder_hidden_states": prompt(2, 7, 24),
            "encoder_attention_mask": constant(1, 2, 7),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    TinyDenoiser(
        "PriorTransformer",
        {
            "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 16,
            "num_embeddings": 7, "additional_embeddings": 4,
        },
        {
            "hidden_states": latent(2, 16), "timestep": timestep(), "proj_embedding": prompt(2, 16),
            "encoder_hidden_states": prompt(2, 7, 16), "attention_mask": mask(2, 7),
        },
    ),
    TinyDenoiser(
        "PRXTransformer2DModel",
        {
            "in_channels": 4, "context_in_dim": 24, "hidden_size": 32, "num_heads": 2, "depth": 2, "axes_dim": [8, 8],
            "mlp_ratio": 2.0,
        },
        {
            "hidden_states": latent(2, 4, 8, 8), "timestep": timestep(2, value=0.5),
            "encoder_hidden_states": prompt(2, 7, 24), "attention_mask": mask(2, 7),
        },
    ),
    TinyDenoiser("QwenImageTransformer2DModel", {**_QWEN, "out_channels": 4}, _QWEN_CALL),
    TinyDenoiser(
        "QwenImage21Transformer2DModel",
        {
            "in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "context_in_dim": 24, "axes_dims_rope": (8, 4, 4),
        },
        {
            **_QWEN_CALL, "hidden_states": latent(1, 16, 16),
            "img_mask": given([[False] * 7 + [True] * 4], "bool"), "encoder_hidden_states_mask": mask(1, 7),
        },
    ),
    TinyDenoiser(
        "SanaTransformer2DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
            "caption_channels": 24, "sample_size": 8,
        },
        {
            "hidden_states": latent(2, 4, 8, 8), "timestep": timestep(2), "encoder_hidden_states": prompt(2, 7, 24),
            "encoder_attention_mask": constant(1, 2, 7),
        },
    ),
    TinyDenoiser(
        "SD3Transformer2DModel",
        {
            "sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
            "num_attention_heads": 2, "joint_attention_dim": 24, "caption_projection_dim": 16,
            "pooled_projection_dim": 12, "pos_embed_max_size": 16, "qk_norm": "rms_norm", "dual_attention_layers": (0,),
        },
        {
            "hidden_states": latent(2, 4, 16, 16), "timestep": timestep(2), "encoder_hidden_states": prompt(2, 7, 24),
            "pooled_projections": prompt(2, 12),
        },
    ),
    TinyDenoiser(
        "Transformer2DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 24, "attention_bias": True,
            "sample_size": 4, "num_vector_embeds": 9, "norm_type": "ada_norm", "num_embeds_ada_norm": 100,
            "activation_fn": "geglu-approximate", "num_layers": 2,
        },
        {
            "hidden_states": tokens([[*range(9), *range(7)]]), "encoder_hidden_states": prompt(1, 7, 24),
            "timestep": timestep(value=5, dtype="int64"),
        },
    ),
    TinyDenoiser(
        "ZImageTransformer2DModel",
        {
            "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
            "cap_feat_dim": 24, "axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32],
        },
        {
            "x": [latent(4, 1, 8, 8), latent(4, 1, 8, 8)], "t": timestep(2, value=0.5),
            "cap_feats": [prompt(7, 24), prompt(5, 24)],
        },
    ),
]  # fmt: skip
