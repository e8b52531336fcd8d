"""build_denoiser: a diffusers denoiser from its configuration, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from partitioner.models.source import diffusers_class

if TYPE_CHECKING:
    from torch import nn


def build_denoiser(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """A denoiser with random weights, and the dtypes that from_pretrained gives it for torch's default dtype.

    Args:
        class_name: A model class of diffusers.
        config: Its configuration.

    Raises:
        UsageError: This version of diffusers has no such class.
    """
    import torch

    cls = diffusers_class(class_name)
    module: nn.Module = cls.from_config(dict(config))
    kept = cls._keep_in_fp32_modules or ()
    for name, tensor in module.state_dict(keep_vars=True).items():
        dtype = torch.float32 if any(part in kept for part in name.split(".")) else torch.get_default_dtype()
        if tensor.is_floating_point() and tensor.dtype != dtype:
            cast = tensor.detach().to(dtype)
            owner, _, attribute = name.rpartition(".")
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            setattr(module.get_submodule(owner), attribute, torch.nn.Parameter(cast, False) if is_parameter else cast)
    return module
