"""Constants: tensors that are neither parameters nor buffers, which a graph carries as data.

Rotary tables that a module keeps as an attribute are such, and lists of numbers that a forward makes a tensor of.
"""

from __future__ import annotations

import hashlib
import math

import torch

from partitioner.graph.nodes import TensorData
from partitioner.graph.tensor_meta import meta_of
from partitioner.graph.torch_private.fakes import unset_fake_temporarily
from partitioner.graph.torch_private.fakes_with_constants import real_of

MAX_CONSTANT_BYTES = 32 << 20  # the largest known, Qwen-Image's rotary tables, take 2 MiB each


def number_in(tensor: torch.Tensor) -> int | float | None:
    """The number of a tensor that holds one, also of a fake one that was made from it; None where there is none."""
    real = real_of(tensor)
    if real is None or real.numel() != 1 or real.is_complex():
        return None
    with unset_fake_temporarily():
        number: int | float = real.item()
    return number


def tensor_data(tensor: torch.Tensor) -> TensorData | None:
    """What a tensor holds, as data; None where that is not known, as of a fake one.

    >>> data = tensor_data(torch.tensor([[1, 2], [3, 4]]).T)
    >>> data.meta.shape, data.meta.stride, tensor_of(data, torch.device("cpu")).tolist()
    ((2, 2), (1, 2), [[1, 3], [2, 4]])
    """
    real = real_of(tensor)
    if real is None:
        return None
    with unset_fake_temporarily():
        real = real.detach().cpu().resolve_conj().resolve_neg().clone()  # keeps strides where no elements overlap
        values = real.as_strided((real.numel(),), (1,)) if real.numel() else real.flatten()
        return TensorData(meta_of(real), values.view(torch.uint8).numpy().tobytes(), _digest(values))


def tensor_of(data: TensorData, device: torch.device) -> torch.Tensor:
    """The tensor that data was made of."""
    dtype = getattr(torch, data.meta.dtype)
    made = torch.empty(data.meta.numel, dtype=dtype)
    if data.values:
        made.view(torch.uint8).copy_(torch.frombuffer(bytearray(data.values), dtype=torch.uint8))
    return made.as_strided(data.meta.shape, data.meta.stride).to(device)


def _digest(values: torch.Tensor) -> str:
    """What stands for the values in a fingerprint.

    Integers count bit by bit. The last bits of a sine depend on the processor that computed it, and a plan holds on
    other machines too; of floating-point numbers the digits count that all agree in: of their norm, and of their sum
    weighted by position.
    """
    if values.is_complex():
        values = torch.view_as_real(values).flatten()
    if not values.is_floating_point():
        return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    precise = values.double()
    finite = precise.isfinite()
    odd = precise.masked_fill(finite, 0.0)
    precise = precise.masked_fill(~finite, 0.0)
    norm = math.sqrt(float(precise.square().sum()))
    weights = torch.arange(1, precise.numel() + 1, dtype=torch.float64).cos()
    share = float((precise * weights).sum()) / norm if norm else 0.0
    unusual = hashlib.sha256(odd.numpy().tobytes()).hexdigest()[:8] if not bool(finite.all()) else ""
    return f"{norm:.3g} {round(share, 2) + 0.0:.2f} {unusual}".strip()
