"""Layout: tensors of any memory layout as bytes and back, and joined."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.transport.layout import Layout, as_bytes, dense, fills_memory, from_bytes, joined


@st.composite
def layouts(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of up to 4 dimensions with permuted, sliced, expanded or plain memory."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    order = draw(st.permutations(range(len(shape))))
    tensor = torch.randn([shape[d] for d in order]).permute(
        [order.index(d) for d in range(len(shape))] if shape else []
    )
    if shape and draw(st.booleans()):
        tensor = tensor[..., ::2]
    if draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(2, *tensor.shape)
    return tensor


@given(layouts())
def test_bytes_become_the_tensor_again_in_its_memory_order(tensor: torch.Tensor) -> None:
    """Where it has gaps or overlaps, in that of its copy."""
    filling = dense(tensor)
    assert fills_memory(filling.shape, filling.stride())
    assert filling.stride() == tensor.clone().stride()
    payload = as_bytes(filling)
    assert payload.numel() == tensor.nbytes
    again = from_bytes(payload.clone(), Layout.of(filling))
    assert torch.equal(again, tensor)


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(4, 6).t()],
    ids=["contiguous", "channels last", "transposed"],
)
def test_what_fills_its_memory_is_not_copied(tensor: torch.Tensor) -> None:
    assert dense(tensor) is tensor
    assert as_bytes(tensor).data_ptr() == tensor.data_ptr()


@given(layouts(), st.data())
def test_parts_are_joined_in_their_own_memory_order(tensor: torch.Tensor, data: st.DataObject) -> None:
    """As the whole lies, where that fills its memory."""
    tensor = dense(tensor)
    splittable = [dim for dim, size in enumerate(tensor.shape) if size == 4]
    if not splittable:
        return
    dim = data.draw(st.sampled_from(splittable))
    whole = joined([part.clone() for part in tensor.chunk(2, dim)], dim)
    assert torch.equal(whole, tensor)
    long = [d for d, size in enumerate(tensor.shape) if size > 1]
    if tensor.numel():
        assert [whole.stride(d) for d in long] == [tensor.stride(d) for d in long]


@given(layouts())
def test_one_part_alone_is_copied_as_it_lies(tensor: torch.Tensor) -> None:
    made = joined([tensor], 0)
    assert torch.equal(made, tensor)
    assert fills_memory(made.shape, made.stride())
    assert made.data_ptr() != tensor.data_ptr() or not tensor.numel()
    long = [d for d, size in enumerate(tensor.shape) if size > 1]
    if tensor.numel() and fills_memory(tensor.shape, tensor.stride()):
        assert [made.stride(d) for d in long] == [tensor.stride(d) for d in long]
