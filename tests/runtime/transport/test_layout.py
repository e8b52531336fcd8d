"""Layout: packing and unpacking tensors of any memory layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from partitioner.graph.ir import TensorMeta
from runtime.transport.layout import as_bytes, pack, unpack


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


def meta_of(tensor: torch.Tensor) -> TensorMeta:
    return TensorMeta(tuple(tensor.shape), tuple(tensor.stride()), str(tensor.dtype).removeprefix("torch."))


@given(layouts(), st.booleans())
def test_unpack_undoes_pack(tensor: torch.Tensor, as_traced: bool) -> None:
    """Also where the tensor lies in memory otherwise than it did when it was traced."""
    meta = meta_of(tensor if as_traced else torch.empty(tensor.shape))
    packed = pack(tensor, meta)
    assert packed.is_contiguous()
    assert packed.numel() == tensor.numel()
    assert torch.equal(unpack(packed.view(-1), meta), tensor)
    assert torch.equal(unpack(as_bytes(packed).view(tensor.dtype), meta), tensor)


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(4, 6).t()],
    ids=["contiguous", "channels last", "transposed"],
)
def test_what_lies_in_memory_as_traced_is_not_copied_and_keeps_its_strides(tensor: torch.Tensor) -> None:
    packed = pack(tensor, meta_of(tensor))
    assert packed.data_ptr() == tensor.data_ptr()
    assert unpack(packed, meta_of(tensor)).stride() == tensor.stride()
