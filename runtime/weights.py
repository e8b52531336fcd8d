"""Weights: just one component's parameters, from the denoiser in the driver's memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from partitioner.ir import Parameter
from runtime.errors import PlanMismatch


def parameters_of(denoiser: nn.Module, wanted: Sequence[Parameter]) -> dict[str, torch.Tensor]:
    """path -> the denoiser's own tensor (not a copy), in the order of ``wanted``.

    PlanMismatch where the denoiser has no such parameter or buffer.
    """
    state: dict[str, torch.Tensor] = dict(denoiser.named_parameters(remove_duplicate=False))
    state.update(denoiser.named_buffers(remove_duplicate=False))
    found = {}
    for parameter in wanted:
        tensor = state.get(parameter.path)
        if tensor is None:
            raise PlanMismatch(f"the denoiser has no parameter or buffer {parameter.path}, which its graph reads")
        found[parameter.path] = tensor.detach()
    return found
