"""digest: another for whatever another content, and the same for the same."""

from __future__ import annotations

import itertools

import pytest
import torch

from partitioner.graph.fakes import traceable
from partitioner.graph.tensor_digest import digest, digests

SIZES = (0, 1, 7, 2047, 2049, 20_001, 300_000)


def of_size(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool])
def test_one_element_is_enough(size: int, dtype: torch.dtype) -> None:
    before = of_size(size, dtype)
    assert digest(before) == digest(of_size(size, dtype))
    for place in {0, size // 3, size - 1}:
        other = before.clone()
        other[place] = not other[place] if dtype is torch.bool else 3
        assert digest(other) != digest(before)


def test_elements_that_change_places_are_others() -> None:
    numbers = torch.arange(200_000.0)
    ways = [numbers, numbers.flip(0), numbers.roll(1), numbers.roll(2048), numbers.view(-1, 1000).t().reshape(-1)]
    swapped = numbers.clone()
    swapped[[10, 150_000]] = numbers[[150_000, 10]]
    for one, other in itertools.combinations([*ways, swapped], 2):
        assert digest(one) != digest(other)


def test_dtype_and_shape_count_and_where_memory_begins_does_not() -> None:
    one = of_size(6000)
    assert len(set(digests([one, one.view(2, 3000), one.view(torch.int32), one[:0], one[:0].view(0, 3)]))) == 5
    room = torch.zeros(6001)
    room[1:] = one
    assert digest(room[1:]) == digest(one)
    assert digest(torch.tensor(float("nan"))) == digest(torch.tensor(float("nan")))
    assert digest(torch.tensor(0.0)) != digest(torch.tensor(-0.0))


def test_what_has_no_memory_has_none() -> None:
    layer = torch.nn.Linear(2, 2)
    with traceable(layer):
        assert digests([torch.empty(3, device="meta"), torch.ones(2).to_sparse()]) == [None, None]
    assert digest(layer.weight) is not None
