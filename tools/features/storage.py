"""Quantised, cast and offloaded weights, memory formats and dtypes: features that keep weights in another way."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tools.features.feature import Feature, Step, before, both, inside
from tools.features.subject import NotApplicable, Subject


def _torchao(subject: Subject) -> None:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise NotApplicable("torchao is not installed") from error

    quantize_(subject.denoiser, Int8WeightOnlyConfig())


def _bitsandbytes(subject: Subject) -> None:
    try:
        import bitsandbytes
    except ImportError as error:
        raise NotApplicable("bitsandbytes is not installed") from error

    for path, module in list(subject.denoiser.named_modules()):
        if type(module) is nn.Linear and module.in_features % 32 == 0 and "time" not in path:
            made = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, module.bias is not None, torch.float32, quant_type="nf4"
            )
            made.weight = bitsandbytes.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4").to(
                "cpu"
            )
            if module.bias is not None:
                made.bias = module.bias
            parent, _, name = path.rpartition(".")
            setattr(subject.denoiser.get_submodule(parent), name, made)


def _layerwise(subject: Subject) -> None:
    subject.denoiser.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def _group_offload(kind: str) -> Any:
    def change(subject: Subject) -> None:
        groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        subject.denoiser.enable_group_offload(
            onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type=kind, **groups
        )

    return change


def _model_offload(subject: Subject) -> None:
    """What enable_model_cpu_offload does on a machine with a GPU."""
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(subject.denoiser, "cpu")


def _sequential_offload(subject: Subject) -> None:
    """What enable_sequential_cpu_offload does on a machine with a GPU."""
    from accelerate import cpu_offload

    cpu_offload(subject.denoiser, "cpu", offload_buffers=True)


FEATURES: list[Feature] = [
    before("torchao int8", _torchao),
    inside(Step("torchao int8, inside", _torchao)),
    before("bitsandbytes nf4", _bitsandbytes),
    inside(Step("bitsandbytes nf4, inside", _bitsandbytes)),
    *both("layerwise casting", _layerwise),
    *both("group offload: leaves", _group_offload("leaf_level"), shows=False),
    *both("group offload: blocks", _group_offload("block_level"), shows=False),
    *both("model offload", _model_offload, shows=False),
    *both("sequential offload", _sequential_offload, shows=False),
    *both(
        "channels_last",
        lambda s: s.denoiser.to(memory_format=torch.channels_last) and None,
        lambda s: s.denoiser.to(memory_format=torch.contiguous_format) and None,
        shows=False,
    ),
    *both("float16", lambda s: s.pipe.to(torch.float16) and None, lambda s: s.pipe.to(torch.float32) and None),
    *both("bfloat16", lambda s: s.pipe.to(torch.bfloat16) and None, lambda s: s.pipe.to(torch.float32) and None),
    inside(Step("denoiser.half(), inside", lambda s: s.denoiser.half() and None)),
    inside(
        Step("VAE slicing", lambda s: s.pipe.vae.enable_slicing(), options={"output_type": "pt"}),
        Step("VAE tiling", lambda s: s.pipe.vae.enable_tiling(), options={"output_type": "pt"}),
    ),
]
