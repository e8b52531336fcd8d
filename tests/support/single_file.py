"""Saves a Stable Diffusion pipeline as one file with the names of its original code, which from_single_file reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_LAYERS = 1  # layers_per_block of tests.support.pipelines' denoisers and autoencoders

_IN_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
_VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "downsamplers.0": "downsample",
    "upsamplers.0": "upsample", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip


def save_single_file(pipe: Any, file: Path) -> None:
    """Write the denoiser, the autoencoder and the text encoder of a small Stable Diffusion pipeline to one file."""
    tensors = {f"model.diffusion_model.{_unet_name(name)}": t for name, t in pipe.unet.state_dict().items()}
    blocks = len(pipe.vae.config.block_out_channels)
    for name, tensor in pipe.vae.state_dict().items():
        is_attention = ".attentions." in name and tensor.dim() == 2
        tensors[f"first_stage_model.{_vae_name(name, blocks)}"] = tensor[:, :, None, None] if is_attention else tensor
    for name, tensor in pipe.text_encoder.state_dict().items():
        prefix = "" if name.startswith("text_model.") else "text_model."
        tensors[f"cond_stage_model.transformer.{prefix}{name}"] = tensor
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, file)


def _unet_name(name: str) -> str:
    each = _LAYERS + 1  # blocks of the original for one of diffusers'
    name = _replaced(name, _UNET)

    def down(found: re.Match[str]) -> str:
        block, kind, index = int(found[1]), found[2], int(found[3])
        if kind == "downsamplers":
            return f"input_blocks.{each * (block + 1)}.0.op"
        return f"input_blocks.{1 + each * block + index}.{int(kind == 'attentions')}"

    def up(found: re.Match[str]) -> str:
        block, kind, index = int(found[1]), found[2], int(found[3])
        if kind == "upsamplers":  # the first block has no attention before it
            return f"output_blocks.{each * block + _LAYERS}.{1 if block == 0 else 2}.conv"
        return f"output_blocks.{each * block + index}.{int(kind == 'attentions')}"

    name = re.sub(r"down_blocks\.(\d+)\.(\w+)\.(\d+)(?:(?<=downsamplers\.0)\.conv)?", down, name)
    name = re.sub(r"up_blocks\.(\d+)\.(\w+)\.(\d+)(?:(?<=upsamplers\.0)\.conv)?", up, name)
    return _replaced(name, _IN_RESNET) if "transformer_blocks" not in name else name


def _vae_name(name: str, blocks: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up.{blocks - 1 - int(found[1])}.", name)
    return _replaced(re.sub(r"(up\.\d+)\.resnets\.", r"\1.block.", name), _VAE)


def _replaced(name: str, words: dict[str, str]) -> str:
    for ours, original in words.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}(?=\.|$)", rf"\g<1>{original}", name)
    return name


def same_state(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two modules hold the same parameters, bit for bit."""
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(t, states[1][n]) for n, t in states[0].items())
