"""Modules without memory: their calls give made-up values of the right shapes, equal for equal arguments."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.graph.torch_private.fakes import FakeTensor
from partitioner.models.stand_ins import StandIns, digest_of


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.register_buffer("steps", torch.arange(3))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {"y": self.inner(x) * scale, "steps": self.steps + 1}


class LooksAtValues(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if float(y.detach().sum()) == 0 else y[:1]


def test_equal_arguments_give_equal_values_and_others_others() -> None:
    twin = StandIns().twin(Pair(), "pair")
    ones, twos = torch.ones(2, 4), torch.full((2, 4), 2.0)
    first = twin(ones)["y"]
    assert first.shape == (2, 6)
    assert not isinstance(first, FakeTensor)
    assert torch.equal(twin(ones)["y"], first)
    assert not torch.equal(twin(twos)["y"], first)
    assert torch.equal(twin(ones)["steps"], torch.tensor([1, 2, 3]))  # small buffers keep their values
    assert twin.inner(ones).shape == (2, 6)  # a part, called from outside


def test_a_buffer_that_has_no_memory_itself_is_known_by_shape() -> None:
    module = Pair()
    module.steps = torch.arange(3, device="meta")
    twin = StandIns().twin(module, "pair")
    assert twin(torch.ones(2, 4))["steps"].shape == (3,)


def test_a_call_that_puts_something_into_a_list_is_made_every_time() -> None:
    class Remembers(nn.Linear):
        def forward(self, x: torch.Tensor, cache: list[Any]) -> torch.Tensor:
            cache.append(x)
            return super().forward(x)

    twin = StandIns().twin(Remembers(4, 6), "vae")
    for _ in range(2):
        cache: list[Any] = []
        twin(torch.ones(2, 4), cache)
        assert len(cache) == 1


def test_a_twin_shares_nothing_and_changes_nothing() -> None:
    module = Pair()
    before = copy.deepcopy(module.state_dict())
    hooked = module.register_forward_hook(lambda *_: None)
    twin = StandIns().twin(module, "pair").to(torch.float64)
    assert (twin.inner.weight.dtype, module.inner.weight.dtype) == (torch.float64, torch.float32)
    assert "forward" not in vars(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    hooked.remove()


def test_a_module_that_looks_at_values_computes_itself() -> None:
    module = LooksAtValues(4, 6)
    x = torch.ones(2, 4)
    assert torch.equal(StandIns().twin(module, "own")(x), module(x))
    stand_ins = StandIns()
    with stand_ins.building():
        built = LooksAtValues(4, 6)
    with pytest.raises(Exception, match="_local_scalar_dense"):
        stand_ins.take(built, "built")(x)


def test_only_the_watched_module_has_variants() -> None:
    stand_ins = StandIns()
    watched, other = stand_ins.twin(nn.Linear(4, 4), "watched"), stand_ins.twin(nn.Linear(4, 4), "other")
    x, seen = torch.ones(1, 4), []

    def note(args: Any, kwargs: Any, output: torch.Tensor) -> None:
        seen.append(digest_of(output))

    with stand_ins.watch(watched, note):
        for stand_ins.variant in (0, 1):
            watched(x)
    assert len(set(seen)) == 2
    assert torch.equal(other(x), other(x))
    assert stand_ins.given == {digest_of(other(x))}


def test_a_watched_module_that_computes_itself_has_variants_too() -> None:
    stand_ins = StandIns()
    watched = stand_ins.twin(LooksAtValues(4, 6), "watched")
    made = []
    with stand_ins.watch(watched, lambda *_: None):
        for stand_ins.variant in (0, 1, 0):
            made.append(watched(torch.ones(2, 4)))
    assert made[0].shape == (1, 6)
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])


def test_names_of_tensors_tell_dtype_shape_and_values() -> None:
    tensors = [torch.zeros(2), torch.zeros(1, 2), torch.zeros(2, dtype=torch.float16), torch.ones(2), torch.ones(1)[0]]
    assert len({digest_of(tensor) for tensor in tensors}) == 5
    assert digest_of(torch.ones(1).expand(2)) == digest_of(torch.ones(2))
