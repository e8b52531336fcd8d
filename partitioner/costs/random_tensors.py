"""Random tensors of the shapes, strides and dtypes that a traced graph's values have."""

from __future__ import annotations

import math
from typing import Any

import torch

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import TensorMeta
from partitioner.graph.operator_classes import value_metas

_BLOCK = 1 << 20


def random_value(graph: TracedGraph, name: str, device: torch.device) -> Any:
    """A stand-in for an input, a parameter or a node of the graph: a random tensor, or a list of them.

    Parameters are as small as those of a layer at its start (1 over the root of what is summed), so that values stay of
    order 1 through a whole component: some operators take up to twice as long on huge ones (gelu, on a CPU).
    """
    if name in graph.parameter_by_name:
        meta = graph.parameter_by_name[name].meta
        summed = math.prod(meta.shape[1:]) or 1
        return random_tensor(meta, device, spread=summed**-0.5)
    made = [random_tensor(meta, device) for meta in value_metas(graph, name)]
    return made[0] if len(made) == 1 else made


def random_tensor(meta: TensorMeta, device: torch.device, *, spread: float = 1.0) -> torch.Tensor:
    """A tensor of that shape, stride and dtype.

    Floats are normal numbers of standard deviation ``spread``; integers are 0, which is valid as an index; bools are
    True.

    >>> random_tensor(TensorMeta((2, 3), (1, 2), "float16"), torch.device("cpu")).stride()
    (1, 2)
    """
    dtype: torch.dtype = getattr(torch, meta.dtype)
    count = extent(meta)
    if dtype is torch.bool:
        storage = torch.ones(count, dtype=dtype, device=device)
    elif dtype.is_floating_point or dtype.is_complex:
        kind = torch.complex64 if dtype.is_complex else torch.float32
        block = (spread * torch.randn(min(count, _BLOCK), dtype=kind, device=device)).to(dtype)
        # repeated: drawing a billion numbers takes seconds, and what they are does not matter
        storage = block.repeat(math.ceil(count / _BLOCK))[:count] if count else block
    else:
        storage = torch.zeros(count, dtype=dtype, device=device)
    return storage.as_strided(meta.shape, meta.stride)


def extent(meta: TensorMeta) -> int:
    """Elements of storage from the tensor's first to its last.

    >>> extent(TensorMeta((2, 3), (8, 1), "float32"))
    11
    """
    if meta.numel == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(meta.shape, meta.stride, strict=True))
