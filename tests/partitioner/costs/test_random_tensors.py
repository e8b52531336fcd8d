"""Random tensors have the layout and the spread that is asked for."""

from __future__ import annotations

import pytest
import torch

from partitioner.costs.random_tensors import random_tensor
from partitioner.graph.nodes import TensorMeta


@pytest.mark.parametrize(
    "meta",
    [
        TensorMeta((2, 3), (3, 1), "float32"),
        TensorMeta((2, 3), (1, 2), "bfloat16"),
        TensorMeta((2, 4, 8, 8), (256, 1, 32, 4), "float16"),
        TensorMeta((5, 3), (0, 1), "float64"),
        TensorMeta((3,), (2,), "complex64"),
        TensorMeta((4,), (1,), "int64"),
        TensorMeta((4,), (1,), "bool"),
        TensorMeta((0, 3), (3, 1), "float32"),
        TensorMeta((), (), "float32"),
        TensorMeta((3, 700_001), (700_001, 1), "float32"),
        TensorMeta((2, 2), (2, 1), "float8_e4m3fn"),
    ],
)
def test_random_tensors_have_the_layout_asked_for(meta: TensorMeta) -> None:
    tensor = random_tensor(meta, torch.device("cpu"))
    assert (tuple(tensor.shape), tensor.stride(), str(tensor.dtype)) == (meta.shape, meta.stride, f"torch.{meta.dtype}")
    if meta.dtype == "float32" and meta.numel > 1000:
        assert tensor.std() == pytest.approx(1, abs=0.01)
