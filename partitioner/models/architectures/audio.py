"""Transformers that make sound: Stable Audio."""

from __future__ import annotations

from partitioner.models.inputs import Inputs, latent, prompt, timestep
from partitioner.models.registry import Request, register_model


@register_model("StableAudioDiTModel")
def _stable_audio(request: Request) -> Inputs:
    """Stable Audio Open: 128 tokens of text and 2 of the start and the end; one timestep for all rows."""
    config, rows = request.config, request.rows
    length, width = config["sample_size"], config["cross_attention_input_dim"]
    table = prompt(length + 1, config["attention_head_dim"] // 2, dtype="float32")
    return {
        "hidden_states": latent(rows, config["in_channels"], length),
        "timestep": timestep(1),
        "encoder_hidden_states": prompt(rows, 128 + 2, width),
        "global_hidden_states": prompt(rows, 1, config["global_states_input_dim"]),
        "rotary_embedding": (table, table),
    }
