"""build_denoiser: a diffusers denoiser from its configuration, without weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from partitioner.library import library_call
from partitioner.models.parameter_bound import MOST_OF_DENOISER, bounded_parameters
from partitioner.models.source import diffusers_class

if TYPE_CHECKING:
    import torch
    from torch import nn


def build_denoiser(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """A denoiser with random weights, and the dtypes that from_pretrained gives it for torch's default dtype.

    Args:
        class_name: A model class of diffusers.
        config: Its configuration.

    Raises:
        UsageError: This version of diffusers has no such class, or makes none of this configuration, or it would be of
            absurd size.
    """
    import torch

    cls = diffusers_class(class_name)
    what = f"a {class_name} of this configuration"
    with bounded_parameters(what, MOST_OF_DENOISER), library_call(f"{what} cannot be built"):
        module: nn.Module = cls.from_config(dict(config))
    kept = cls._keep_in_fp32_modules or ()
    cast(module, torch.get_default_dtype(), kept)
    return module


def cast(module: nn.Module, dtype: torch.dtype, kept: Collection[str] = ()) -> None:
    """Give a module's floating-point tensors a dtype, also those without memory. kept: parts of names of float32."""
    import torch

    for name, tensor in module.state_dict(keep_vars=True).items():
        wanted = torch.float32 if any(part in kept for part in name.split(".")) else dtype
        if tensor.is_floating_point() and tensor.dtype != wanted:
            made = tensor.detach().to(wanted)
            owner, _, attribute = name.rpartition(".")
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            setattr(module.get_submodule(owner), attribute, torch.nn.Parameter(made, False) if is_parameter else made)
