"""TensorValues: every way of writing to a tensor is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from partitioner.graph.tensor_values import TensorValues


def tensors() -> list[torch.Tensor]:
    with torch.inference_mode():
        without_version = torch.ones(40)
    return [
        torch.nn.Parameter(torch.ones(50, 30)),
        torch.ones(2, 8, 8, 8).to(memory_format=torch.channels_last),
        torch.ones(64, 64)[:, ::2],
        torch.ones(3),
        torch.ones(()),
        torch.full((5,), float("nan")),
        torch.ones(9).to(torch.float8_e4m3fn),
        torch.ones(4, dtype=torch.bool),
        without_version,
        torch.ones(0),
        torch.ones(4, device="meta"),
        torch.eye(3).to_sparse(),
    ]


def double(tensor: torch.Tensor) -> None:
    tensor.mul_(2)


WRITES: dict[str, tuple[Callable[[torch.Tensor], object], bool]] = {
    "in place": (double, True),
    "one element": (lambda tensor: tensor[1].fill_(5), True),
    "moved": (lambda tensor: setattr(tensor, "data", tensor.data.clone()), True),
    "another dtype": (lambda tensor: setattr(tensor, "data", tensor.data.half()), True),
    "by .data": (lambda tensor: tensor.data.mul_(2), False),
    "one element by .data": (lambda tensor: tensor.data[1].fill_(5), False),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_a_write_is_noticed(index: int, name: str) -> None:
    made = tensors()
    values = TensorValues(made)
    assert not values.changed()
    assert values.which() == []

    write, is_marked = WRITES[name]
    with torch.no_grad():
        write(made[index])
    assert values.changed() == is_marked
    assert values.written() == (name in ("in place", "one element")), "elsewhere lies what it was"
    assert values.moved() == (is_marked and not values.written())
    assert [tensor is made[index] for tensor in values.which()] == [True]


def test_a_tensor_without_version_is_noticed_by_its_elements() -> None:
    made = tensors()
    values = TensorValues(made)
    with torch.inference_mode():
        made[8].add_(1)
    assert [tensor is made[8] for tensor in values.which()] == [True]


def test_what_need_not_be_read_is_told_by_its_mark() -> None:
    made, marks = tensors(), {}
    marks[id(made[0])] = 1
    values = TensorValues(made, lambda: dict(marks))
    made[0].data.mul_(2)
    assert values.which() == []
    marks[id(made[0])] = 2
    assert [tensor is made[0] for tensor in values.which()] == [True]
    values.settle([made[0]])
    assert values.which() == []
    marks.clear()  # as of a view that has memory of its own again
    assert values.which() == []
    made[0].data.mul_(2)
    assert [tensor is made[0] for tensor in values.which()] == [True]
