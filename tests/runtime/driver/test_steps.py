"""SameBits: whether two tensors are the same to the last bit, in every dtype and layout."""

from __future__ import annotations

import pytest
import torch

from runtime.driver.steps import SameBits

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.int64, torch.complex64, torch.complex128)
LAYOUTS = {
    "a number": lambda tensor: tensor[0, 0],
    "one number, expanded": lambda tensor: tensor[0, 0].expand(1),  # as pipelines expand a timestep
    "a number, expanded": lambda tensor: tensor[0, 0].expand(3),
    "dense": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.t(),
    "every other": lambda tensor: tensor[:, ::2],
    "empty": lambda tensor: tensor[:0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_any_dtype_and_layout_are_compared(dtype: torch.dtype, layout: str) -> None:
    one = LAYOUTS[layout](torch.ones(2, 4).to(dtype))
    other = LAYOUTS[layout](torch.ones(2, 4).to(dtype))
    assert SameBits(one, other)
    changed = LAYOUTS[layout](torch.zeros(2, 4).to(dtype))
    assert bool(SameBits(one, changed)) == (one.numel() == 0)


def test_nan_is_itself_and_zero_is_not_minus_zero() -> None:
    assert SameBits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not SameBits(torch.tensor([0.0]), torch.tensor([-0.0]))
