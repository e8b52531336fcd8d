"""Published architectures made small, and folders that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from partitioner.graph.arguments import flatten_arguments
from partitioner.models.find_spec import model_spec
from partitioner.models.source import find_source

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
    "sdxl-refiner": {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (2, 4),
        "transformer_layers_per_block": 1, "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 5 * 8 + 16,
    },
    "flux2": {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
        "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16,
    },
    "chroma": {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
        "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8,
        "approximator_hidden_dim": 16, "approximator_layers": 1,
    },
    "qwen-image": {
        "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 16,
        "axes_dims_rope": (4, 4, 8),
    },
    "z-image": {
        "dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16,
        "axes_dims": (4, 4, 8), "axes_lens": (1024, 32, 32),
    },
    "krea2": {
        "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "num_key_value_heads": 1,
        "intermediate_size": 32, "timestep_embed_dim": 16, "text_hidden_dim": 16, "num_text_layers": 3,
        "text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 4, 8),
    },
    "sana": {
        "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 2,
    },
    "lumina2": {
        "sample_size": 8, "hidden_size": 24, "num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2,
        "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": (4, 4, 4), "axes_lens": (300, 32, 32),
        "cap_feat_dim": 16,
    },
    "hunyuan-image": {
        "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
        "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 16, "text_embed_2_dim": 16,
        "rope_axes_dim": (8, 8),
    },
    "kandinsky5-lite": {
        "in_text_dim": 16, "in_text_dim2": 16, "time_dim": 16, "model_dim": 32, "ff_dim": 32, "num_text_blocks": 1,
        "num_visual_blocks": 1, "axes_dims": (4, 6, 6),
    },
    "hunyuan-video": {
        "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "num_single_layers": 1,
        "num_refiner_layers": 1, "text_embed_dim": 16, "pooled_projection_dim": 16, "rope_axes_dim": (4, 4, 4),
    },
    "hunyuan-video-1.5": {
        "in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1,
        "num_refiner_layers": 1, "text_embed_dim": 16, "text_embed_2_dim": 16, "image_embed_dim": 12,
        "rope_axes_dim": (4, 4, 4), "target_size": 64,
    },
    "ltx-video": {
        "in_channels": 8, "out_channels": 8, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8,
        "cross_attention_dim": 16, "caption_channels": 16,
    },
    "ltx2": {
        "in_channels": 8, "out_channels": 8, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8,
        "cross_attention_dim": 16, "audio_in_channels": 128, "audio_out_channels": 128, "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8, "caption_channels": 16,
    },
    "cogvideox-5b": {
        "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 8, "text_embed_dim": 16, "num_layers": 1,
        "sample_width": 8, "sample_height": 8, "sample_frames": 9,
    },
    "mochi": {
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "pooled_projection_dim": 16,
        "text_embed_dim": 16, "time_embed_dim": 16,
    },
    "cosmos-predict2-2b": {
        "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": 16,
        "adaln_lora_dim": 4, "max_size": (4, 16, 16),
    },
    "stable-audio": {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 1, "attention_head_dim": 8,
        "num_attention_heads": 2, "num_key_value_attention_heads": 1, "cross_attention_dim": 16, "time_proj_dim": 16,
        "global_states_input_dim": 32, "cross_attention_input_dim": 16,
    },
}  # fmt: skip
# names whose configurations are made small alike
LIKE = {
    "sd-controlnet": "sd15", "sdxl-inpaint": "sdxl", "flux-fill": "flux", "flux2-klein-4b": "flux2",
    "flux2-klein-9b": "flux2", "wan21-1.3b": "wan", "wan22-t2v-a14b": "wan", "wan22-i2v-a14b": "wan",
    "wan22-ti2v-5b": "wan", "sd35-large": "sd3", "sd35-medium": "sd3", "sd21": "sd15",
}  # fmt: skip


def small_denoiser(name: str, **changes: Any) -> Any:
    source = find_source(name)
    assert source is not None
    torch.manual_seed(0)
    config = {**source.config, **SMALL[LIKE.get(name, name)], **changes}
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
