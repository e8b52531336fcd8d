"""What a tensor is, in the words of a traced graph: shape, strides, and its dtype's name."""

from __future__ import annotations

import torch

from partitioner.graph.nodes import TensorMeta


def name_of_dtype(tensor: torch.Tensor) -> str:
    """The name of a tensor's dtype, without "torch."."""
    return str(tensor.dtype).removeprefix("torch.")


def meta_of(tensor: torch.Tensor) -> TensorMeta:
    """Shape, strides and dtype of a tensor of fixed size.

    >>> print(meta_of(torch.zeros(2, 3).half()))
    float16[2,3]
    """
    return TensorMeta(tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride())), name_of_dtype(tensor))
