"""Published architectures made small, and folders that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from partitioner.graph.arguments import flatten_arguments
from partitioner.models.source import find_source
from partitioner.models.spec import model_spec

# What makes a published configuration small, its topology aside.
SMALL: dict[str, dict[str, Any]] = {
    "sd15": {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4,
    },
    "sdxl": {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (2, 4),
        "transformer_layers_per_block": 1, "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
    "svd": {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "num_attention_heads": (2, 4),
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24, "num_frames": 3,
    },
    "animatediff": {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"), "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
    },
    "sd3": {
        "sample_size": 16, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
        "joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 16, "pos_embed_max_size": 16,
    },
    "flux": {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16,
        "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 4, 8),
    },
    "pixart": {
        "sample_size": 16, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
        "cross_attention_dim": 16, "caption_channels": 16,
    },
    "wan": {
        "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "text_dim": 16,
        "freq_dim": 16,
    },
}  # fmt: skip


def small_denoiser(name: str, **changes: Any) -> Any:
    source = find_source(name)
    assert source is not None
    torch.manual_seed(0)
    config = {**source.config, **SMALL[name], **changes}
    return getattr(diffusers, source.class_name).from_config(config).eval()


def tensors_of(arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return flatten_arguments(arguments).tensors


def shapes_of(arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(tensor.shape) for path, tensor in tensors_of(arguments).items()}


def write_pipeline(folder: Path, class_name: str, denoiser: Any, part: str = "unet", **index: Any) -> None:
    folder.mkdir(exist_ok=True)
    library = ["diffusers", type(denoiser).__name__]
    (folder / "model_index.json").write_text(json.dumps({"_class_name": class_name, part: library, **index}))
    denoiser.save_config(folder / part)


def shapes(model: str | Path, **sizes: Any) -> dict[str, tuple[int, ...]]:
    return shapes_of(model_spec(str(model), **sizes).example_inputs())
