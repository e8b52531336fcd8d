"""ModuleState: every way in which people change a denoiser is seen, named, and taken back."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.graph.module_state import ModuleState, same


class Processor:
    def __init__(self) -> None:
        self.step = 0
        self.kept: list[int] = []


def denoiser() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.1), nn.LayerNorm(2))).eval()
    module[0].processor = Processor()
    module[0].scaling = {"default": 1.0}
    return module


def hook(*_anything: Any) -> None:
    """Does nothing."""


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "attribute": (lambda m: setattr(m[1], "b1", 1.2), "attribute b1 of module 1"),
    "training": (lambda m: m.train(), "attribute training of module <root>"),
    "hook": (lambda m: m[1].register_forward_hook(hook), r"forward hook \d+ of module 1"),
    "pre-hook": (lambda m: m[0].register_forward_pre_hook(hook), r"forward pre-hook \d+ of module 0"),
    "submodule": (lambda m: m[1].append(nn.Identity()), "submodule 2 of module 1"),
    "processor": (lambda m: setattr(m[0], "processor", Processor()), "attribute processor of module 0"),
    "counter": (lambda m: setattr(m[0].processor, "step", 1), "attribute processor.step of module 0"),
    "list": (lambda m: m[0].processor.kept.append(1), r"attribute processor.kept\[0\] of module 0"),
    "dict": (lambda m: m[0].scaling.update(default=0.5), "attribute scaling.default of module 0"),
    "forward": (lambda m: setattr(m[0], "forward", hook), "attribute forward of module 0"),
    "parameter": (lambda m: setattr(m[0], "weight", nn.Parameter(torch.zeros(2, 2))), "parameter weight of module 0"),
    "buffer": (lambda m: m[1].register_buffer("table", torch.zeros(1)), "buffer table of module 1"),
}


class Merging(nn.Linear):
    """What a user puts in the place of a layer's class."""


def test_another_class_is_a_change() -> None:
    module = denoiser()
    state = ModuleState(module)
    module[0].__class__ = Merging  # type: ignore[index, union-attr]
    assert state.changed()
    assert [str(difference) for difference in state.differences()] == ["class of 0 of module <root>"]
    state.restore()
    assert type(module[0]) is nn.Linear  # type: ignore[index]


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        (nn.Linear, "forward", "attribute Linear.forward of module 0"),
        (nn.functional, "scaled_dot_product_attention", "function torch.nn.functional.scaled_dot_product_attention"),
    ],
)
def test_a_librarys_function_that_is_replaced_is_a_change(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, expected: str
) -> None:
    state = ModuleState(denoiser())
    monkeypatch.setattr(owner, name, hook)
    assert state.changed()
    assert str(state.differences()[0]).startswith(expected)


def test_code_that_is_loaded_again_is_a_change() -> None:
    """As IPython's autoreload does it: the function stays, and gets the code of the edited one."""

    def mine(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output

    def edited(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return 2 * output

    module, before = denoiser(), mine.__code__
    module.register_forward_hook(mine)
    state = ModuleState(module)
    mine.__code__ = edited.__code__
    assert state.changed()
    assert [str(each) for each in state.differences()] == ["forward hook mine: __code__ of module <root>"]
    state.restore()
    assert mine.__code__ is before


def test_what_a_function_imports_itself_is_read_there(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = types.ModuleType("settings_of_mine")
    settings.strength = 0.5  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "settings_of_mine", settings)

    def mine(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        from settings_of_mine import strength  # type: ignore[import-not-found]

        return output * strength  # type: ignore[no-any-return]

    module = denoiser()
    module.register_forward_hook(mine)
    state = ModuleState(module)
    assert not state.changed()
    settings.strength = 1.0  # type: ignore[attr-defined]
    assert state.changed()
    assert len(state.differences()) == 1


def test_a_hook_of_all_modules_is_a_change() -> None:
    state = ModuleState(denoiser())
    with nn.modules.module.register_module_forward_hook(hook):
        assert state.changed()
        assert str(state.differences()[0]).startswith("hook of all modules")
    assert not state.changed()


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_named_and_taken_back(name: str) -> None:
    module = denoiser()
    state = ModuleState(module)
    assert not state.changed()
    assert state.differences() == []

    change, expected = CHANGES[name]
    change(module)
    assert state.changed()
    first = state.differences()[0]
    assert re.fullmatch(expected, str(first)), str(first)
    assert first.is_part == (name in ("hook", "pre-hook", "submodule", "parameter", "buffer"))

    state.restore()
    assert state.differences() == []


def test_values_that_are_written_to_are_another_things_matter() -> None:
    module = denoiser()
    state = ModuleState(module)
    with torch.no_grad():
        module[0].weight.mul_(2)  # type: ignore[index, operator]
    assert not state.changed()


def test_an_equal_number_is_no_difference() -> None:
    module: Any = denoiser()
    module.size = (1000, 2000.5)
    state = ModuleState(module)
    module.size = (int("1000"), float("2000.5"))
    assert state.changed()
    assert state.differences() == []


def test_what_an_engine_puts_there_itself_is_ignored() -> None:
    module = denoiser()
    state = ModuleState(module, frozenset({"forward"}))
    module.forward = hook
    assert not state.changed()
    module.other = 1  # type: ignore[assignment]
    assert [str(difference) for difference in state.differences()] == ["attribute other of module <root>"]


def test_what_counts_as_the_same() -> None:
    assert same({"a": [1, (2, "b")]}, {"a": [1, (2, "b")]})
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not same([True], [1])
    assert not same(Processor(), Processor())
    assert not same(torch.zeros(1), torch.zeros(1))


def test_tensors_beside_the_parts_of_modules_are_brought_to_a_device_and_put_back() -> None:
    module = nn.Linear(2, 2)
    here, pair, weight = torch.ones(1), (torch.ones(2), 3), module.weight
    module.kept, module.pair = [here], pair
    state = ModuleState(module)
    state.bring_to(torch.device("meta"))
    assert module.kept[0].is_meta
    assert module.pair[0].is_meta
    assert module.pair[1] == 3
    assert module.weight is weight
    state.restore()
    assert module.kept[0] is here
    assert module.pair is pair


def put_on(module: Any, scale: float) -> Any:
    def scaled(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * scale * len(CHANGES)

    return module.register_forward_hook(scaled)


def test_modules_whose_hooks_change_are_followed_and_their_forms_tell_what_they_are() -> None:
    module = denoiser()
    state = ModuleState(module)
    inner = next(path for path, child in module.named_modules() if isinstance(child, nn.Linear))
    forms = []
    for scale in (0.5, 2.0, 0.5):
        handle = put_on(module.get_submodule(inner), scale)
        assert state.changed()
        found = state.follow()
        assert found is not None
        assert {difference.module for difference in found} == {inner}
        assert not state.changed()
        forms.append(state.forms[inner])
        handle.remove()
        assert state.follow() is not None
        assert state.forms[inner] == state.former[inner]
    assert forms[0] == forms[2] != forms[1]
    places = len(state._beside.places[""])
    put_on(module.get_submodule(inner), 0.5)
    assert state.follow() is not None
    assert len(state._beside.places[""]) == places, "what is beside modules is taken once"


def test_another_parameter_or_submodule_is_not_followed() -> None:
    module = denoiser()
    state = ModuleState(module)
    inner = next(child for child in module.modules() if isinstance(child, nn.Linear))
    inner.weight = nn.Parameter(inner.weight.detach().clone())
    assert state.follow() is None
    assert state.changed(), "and nothing is taken for known"
    state = ModuleState(module)
    inner.more = nn.Linear(1, 1)
    assert state.follow() is None
    state = ModuleState(module)
    inner.scale = torch.ones(1)
    assert state.follow() is None, "a tensor that nothing had"
