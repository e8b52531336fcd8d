"""Layout: a tensor of any memory layout as contiguous bytes, and back."""

from __future__ import annotations

import torch

from partitioner.graph.ir import TensorMeta


def pack(tensor: torch.Tensor, meta: TensorMeta) -> torch.Tensor:
    """The tensor's elements in the memory order of ``meta``, contiguous; no copy where they lie so already.

    >>> transposed = torch.arange(6).view(3, 2).t()
    >>> pack(transposed, TensorMeta((2, 3), (1, 2), "int64"))
    tensor([[0, 1],
            [2, 3],
            [4, 5]])
    """
    return tensor.permute(_memory_order(meta)).contiguous()


def as_bytes(packed: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, without a copy; also of a single element, which may have any stride."""
    return packed.as_strided((packed.numel(),), (1,)).view(torch.uint8)


def unpack(packed: torch.Tensor, meta: TensorMeta) -> torch.Tensor:
    """Undo ``pack``: a tensor of the shape and memory order of ``meta``. packed: the elements, in any shape."""
    order = _memory_order(meta)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return packed.view([meta.shape[dim] for dim in order]).permute(inverse)


def _memory_order(meta: TensorMeta) -> list[int]:
    """The dimensions by falling stride if a tensor of this meta fills its memory without gaps, else as they are."""
    order = sorted(range(len(meta.shape)), key=lambda dim: (-meta.stride[dim], dim))
    length = 1
    for dim in reversed(order):
        if meta.shape[dim] != 1 and meta.stride[dim] != length:
            return list(range(len(meta.shape)))
        length *= meta.shape[dim]
    return order
