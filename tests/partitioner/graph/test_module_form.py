"""ModuleForm: the like of what was taken off a module has its form, and nothing else has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.graph.module_form import ModuleForm


class Hook:
    """As diffusers' hooks are: an object with a setting, and the forward that it stands before."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.names = ["skip"]

    def new_forward(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def put(layer: Any, scale: float = 0.5) -> None:
    layer.hook = Hook(scale)
    layer.before = layer.forward

    def rewritten(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = layer.hook.new_forward(module, x)
        return made

    layer.forward = functools.partial(rewritten, layer)


def take_off(layer: Any) -> None:
    del layer.forward, layer.before, layer.hook


def test_the_like_put_on_anew_has_the_form_of_what_was_taken_off() -> None:
    layer = nn.Linear(2, 2)
    plain = ModuleForm(layer)
    put(layer)
    hooked = ModuleForm(layer)
    take_off(layer)
    assert ModuleForm(layer) == plain
    put(layer)
    assert ModuleForm(layer) == hooked
    assert hash(ModuleForm(layer)) == hash(hooked)
    assert hooked != plain


CHANGES: dict[str, Callable[[Any], None]] = {
    "a number": lambda layer: setattr(layer.hook, "scale", 0.25),
    "its type": lambda layer: setattr(layer.hook, "scale", True),
    "a list": lambda layer: layer.hook.names.append("other"),
    "a tensor": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach().clone())),
    "a tensor's attribute": lambda layer: setattr(layer.weight, "scale", 2),
    "other code": lambda layer: setattr(layer, "forward", lambda x: x),
    "a class": lambda layer: setattr(layer, "hook", type("Other", (Hook,), {})(0.5)),
    "a module in a list": lambda layer: setattr(layer.beside[0], "p", 0.5),
    "what a function closes over": lambda layer: layer.forward.func.__closure__[0].cell_contents.__dict__.pop("kept"),
    "a hook": lambda layer: layer.register_forward_hook(Hook(1.0).new_forward) and None,
    "a generator": lambda layer: setattr(layer, "drawn", torch.Generator()),
    "objects in a set": lambda layer: setattr(layer, "objects", {Hook(1.0)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_another_makes_another_form(change: str) -> None:
    layer: Any = nn.Linear(2, 2)
    layer.beside = [nn.Dropout(0.1)]
    layer.drawn, layer.kept, layer.objects = torch.Generator(), 1, {Hook(1.0)}
    put(layer)
    submodules = {id(layer)}
    before = ModuleForm(layer, submodules=submodules)
    CHANGES[change](layer)
    assert ModuleForm(layer, submodules=submodules) != before


def test_hooks_count_by_their_order_and_not_by_their_numbers() -> None:
    layer, hook = nn.Linear(2, 2), Hook(1.0)
    handle = layer.register_forward_hook(hook.new_forward, with_kwargs=True)
    once = ModuleForm(layer)
    handle.remove()
    layer.register_forward_hook(hook.new_forward, with_kwargs=True)
    assert ModuleForm(layer) == once
    layer.register_forward_hook(hook.new_forward)
    assert ModuleForm(layer) != once


def test_what_others_hold_counts_by_identity_and_what_is_ignored_not_at_all() -> None:
    layer, inner = nn.Linear(2, 2), nn.Linear(2, 2)
    layer.inner = inner
    form = ModuleForm(layer, submodules={id(inner)}, ignored=frozenset({"mark"}))
    inner.in_features, layer.mark = 5, 7
    assert ModuleForm(layer, submodules={id(inner)}, ignored=frozenset({"mark"})) == form
    layer.inner = nn.Linear(2, 2)
    assert ModuleForm(layer, submodules={id(inner)}, ignored=frozenset({"mark"})) != form


def test_the_form_of_what_containers_held_before() -> None:
    layer = nn.Linear(2, 2)
    layer.scales = {"one": 1.0}
    before = ModuleForm(layer)
    held: dict[int, Any] = {
        id(layer.__dict__): list(layer.__dict__.items()),
        id(layer.scales): [("one", 1.0)],
    }
    layer.scales["one"] = 2.0
    layer.more = 1
    assert ModuleForm(layer, held=held) == before
    assert ModuleForm(layer) != before
