"""How a tensor of any memory layout becomes contiguous bytes, and a tensor again."""

from __future__ import annotations

import torch

from partitioner.graph.ir import TensorMeta


def pack(tensor: torch.Tensor, meta: TensorMeta) -> torch.Tensor:
    """The elements in the memory order that was traced, contiguous; no copy where the tensor lies like that."""
    return tensor.permute(_memory_order(meta)).contiguous()


def as_bytes(packed: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, without a copy. A single element may have any stride, also 0."""
    return packed.as_strided((packed.numel(),), (1,)).view(torch.uint8)


def unpack(packed: torch.Tensor, meta: TensorMeta) -> torch.Tensor:
    """Undo ``pack``; takes the elements in any shape."""
    order = _memory_order(meta)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return packed.view([meta.shape[dim] for dim in order]).permute(inverse)


def _memory_order(meta: TensorMeta) -> list[int]:
    """Dimensions by falling stride, if the tensor fills its memory without gaps in that order; else as they are."""
    order = sorted(range(len(meta.shape)), key=lambda dim: (-meta.stride[dim], dim))
    length = 1
    for dim in reversed(order):
        if meta.shape[dim] != 1 and meta.stride[dim] != length:
            return list(range(len(meta.shape)))
        length *= meta.shape[dim]
    return order
