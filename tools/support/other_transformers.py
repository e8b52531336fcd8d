"""The transformers of diffusers that make sound, made small."""

from __future__ import annotations

from tools.support.tiny_denoiser import TinyDenoiser, constant, latent, mask, prompt, timestep

OTHER_TRANSFORMERS = [
    TinyDenoiser(
        "AceStepTransformer1DModel",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "in_channels": 24, "audio_acoustic_hidden_dim": 8,
            "sliding_window": 4,
        },
        {
            "hidden_states": latent(1, 16, 8), "timestep": timestep(1, value=0.5), "timestep_r": timestep(1, value=0.5),
            "encoder_hidden_states": prompt(1, 7, 32), "context_latents": prompt(1, 16, 16),
        },
    ),
    TinyDenoiser(
        "LongCatAudioDiTTransformer",
        {"dit_dim": 32, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 24, "latent_dim": 8},
        {
            "hidden_states": latent(1, 16, 8), "timestep": timestep(1, value=0.5),
            "encoder_hidden_states": prompt(1, 7, 24), "encoder_attention_mask": mask(1, 7),
            "attention_mask": mask(1, 16), "latent_cond": prompt(1, 16, 8),
        },
    ),
    TinyDenoiser(
        "MiniMaxMusic3Transformer1DModel",
        {
            "in_channels": 8, "condition_dim": 24, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
            "ff_inner_dim": 48, "rotary_dim": 4, "fourier_embedding_dim": 8,
        },
        {
            "hidden_states": latent(1, 8, 16), "timestep": timestep(1, value=0.5),
            "encoder_hidden_states": prompt(1, 16, 24),
        },
    ),
    TinyDenoiser(
        "StableAudioDiTModel",
        {
            "sample_size": 16, "in_channels": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
            "num_key_value_attention_heads": 2, "out_channels": 8, "cross_attention_dim": 24, "time_proj_dim": 8,
            "global_states_input_dim": 16, "cross_attention_input_dim": 24,
        },
        {
            "hidden_states": latent(2, 8, 16), "timestep": timestep(1, value=0.5),
            "encoder_hidden_states": prompt(2, 7, 24), "global_hidden_states": prompt(2, 1, 16),
            "rotary_embedding": (prompt(17, 4), prompt(17, 4)),
        },
    ),
    TinyDenoiser(
        "StableAudio3DiTModel",
        {
            "io_channels": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "cond_token_dim": 24, "global_cond_dim": 16,
            "local_add_cond_dim": 5, "timestep_features_dim": 16, "ff_mult": 2, "num_memory_tokens": 3,
        },
        {
            "hidden_states": latent(2, 8, 16), "timestep": timestep(2, value=0.5),
            "encoder_hidden_states": prompt(2, 7, 24), "global_hidden_states": prompt(2, 16),
            "encoder_attention_mask": mask(2, 7),
        },
    ),
    TinyDenoiser(
        "T5FilmDecoder",
        {
            "input_dims": 8, "targets_length": 16, "d_model": 24, "num_layers": 2, "num_heads": 2, "d_kv": 8,
            "d_ff": 32,
        },
        {
            "encodings_and_masks": [(prompt(1, 7, 24), constant(1, 1, 7))], "decoder_input_tokens": latent(1, 16, 8),
            "decoder_noise_time": timestep(1, value=0.5),
        },
    ),
]  # fmt: skip
