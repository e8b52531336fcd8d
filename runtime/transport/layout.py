"""Layout: a tensor of any memory layout as bytes, and back with the same layout.

A message keeps the layout that its tensor really has, for operators choose by it how they compute, and round. What a
trace says of layouts may be another (from torch 2.14 on that of group norm is).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """How a tensor that fills its memory lies there."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    size_bytes: int

    @staticmethod
    def of(tensor: torch.Tensor) -> Layout:
        """A tensor's own."""
        return Layout(tensor.dtype, tensor.shape, tensor.stride(), tensor.nbytes)

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether it is a tensor's."""
        return tensor.dtype is self.dtype and tensor.shape == self.shape and tensor.stride() == self.stride


def fills_memory(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a tensor fills its memory without gaps or overlaps, its dimensions in any order.

    >>> fills_memory((2, 3), (1, 2)), fills_memory((2, 3), (6, 2)), fills_memory((2, 3), (0, 1))
    (True, False, False)
    """
    length = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size != 1):
        if step != length:
            return 0 in shape
        length *= size
    return True


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it fills its memory, else a copy that does, with its dimensions in the same order."""
    return tensor if tensor.is_contiguous() or fills_memory(tensor.shape, tensor.stride()) else tensor.clone()


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor that fills its memory, in the order in which they lie there, without a copy."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def from_bytes(payload: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Undo ``as_bytes``: the tensor of that layout whose bytes these are, without a copy.

    >>> tensor = torch.arange(6).view(3, 2).t()
    >>> from_bytes(as_bytes(tensor), Layout.of(tensor))
    tensor([[0, 2, 4],
            [1, 3, 5]])
    """
    return payload.view(layout.dtype).as_strided(layout.shape, layout.stride)


def joined(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Tensors behind each other along a dimension, as a new tensor whose dimensions lie in memory as the first's.

    >>> rows = torch.zeros(2, 4, 5, 3).to(memory_format=torch.channels_last).chunk(2)
    >>> joined(rows, 0).stride()
    (60, 1, 12, 4)
    """
    if len(tensors) == 1:
        return tensors[0].clone()
    shape, stride = tensors[0].shape, tensors[0].stride()
    order = sorted(range(len(shape)), key=lambda d: (shape[d] != 1, -stride[d], d))  # what is 1 long may lie anywhere
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat([tensor.permute(order) for tensor in tensors], order.index(dim)).permute(inverse)
