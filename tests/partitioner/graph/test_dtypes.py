"""check_dtypes: matrix products that torch refuses are refused by a trace, too, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from partitioner.errors import ForwardFailed
from partitioner.graph.export import trace


class Product(nn.Module):
    """Multiplies its input by its weight in one of several ways."""

    def __init__(self, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(4, 4, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "linear":
            return linear(x, self.weight)
        if self.kind == "matmul":
            return x @ self.weight
        if self.kind == "mask":
            return scaled_dot_product_attention(x, x, x, attn_mask=self.weight > 0)
        if self.kind == "outer":
            return torch.einsum("...n,d->...nd", x, self.weight[0])
        return x * self.weight  # torch promotes it


@pytest.mark.parametrize("kind", ["linear", "matmul", "mask", "outer", "product"])
def test_only_what_torch_does_not_multiply_is_refused(kind: str) -> None:
    module = Product(kind, torch.bfloat16).eval()
    arguments: dict[str, Any] = {"x": torch.ones(1, 4, 4)}
    try:
        module(**arguments)
    except RuntimeError:
        with pytest.raises(ForwardFailed, match=r"module <root> multiplies bfloat16 by float32 \(aten"):
            trace(module, arguments, {"x": "latent"})
        assert kind in ("linear", "matmul")
    else:
        trace(module, arguments, {"x": "latent"})
        assert kind in ("mask", "outer", "product")
    trace(Product(kind, torch.float32).eval(), arguments, {"x": "latent"})
