"""movable: whoever else has a part of a tensor's memory, and that nobody does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from runtime.transport.movable import movable

SHARERS: dict[str, Callable[[nn.Module], object]] = {
    "state_dict": nn.Module.state_dict,
    "data": lambda module: [parameter.data for parameter in module.parameters()],
    "numpy": lambda module: [parameter.detach().numpy() for parameter in module.parameters()],
    "a row": lambda module: [parameter.detach()[1:] for parameter in module.parameters()],
    "another parameter": lambda module: [nn.Parameter(parameter.data) for parameter in module.parameters()],
    "storage": lambda module: [parameter.untyped_storage() for parameter in module.parameters()],
    "another process": lambda module: module.share_memory(),
}


@pytest.mark.parametrize("name", SHARERS)
def test_what_is_shared_is_not_movable(name: str) -> None:
    module = nn.Linear(3, 2)
    both = {id(parameter) for parameter in module.parameters()}
    assert movable(module.parameters()) == both
    kept = SHARERS[name](module)
    assert movable(module.parameters()) == set()
    del kept
    assert movable(module.parameters()) == (set() if name == "another process" else both)


def test_neither_is_what_lies_in_one_buffer() -> None:
    flat = torch.zeros(6)
    one, other = nn.Parameter(flat[:2]), nn.Parameter(flat[1:4])
    del flat
    assert movable([one], [one, other]) == set()


def test_a_view_shares_with_what_it_was_made_of_alone() -> None:
    table = torch.arange(8).view(2, 4)
    assert table._base is not None
    assert movable([table]) == {id(table)}
