"""Reachable: what a forward can get at, and what does not belong to the denoiser."""

from __future__ import annotations

import contextvars
import functools
import types
from typing import Any

import numpy
import torch
from torch import nn

from partitioner.graph.module_state import ModuleState
from partitioner.graph.reachable import Reachable

SCALES = [1.0]


class Store:
    """A plain object, which a processor holds."""

    def __init__(self) -> None:
        self.maps: list[torch.Tensor] = [torch.zeros(2)]


class Processor:
    """No module, as diffusers' attention processors are."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * SCALES[0]


class Pipeline:
    """Holds the denoiser; so much belongs to it that is no part of the denoiser."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.progress = [0]

    @property
    def rate(self) -> float:
        return 0.5

    @property
    def components(self) -> dict[str, Any]:
        return {"denoiser": self.denoiser}


def denoiser() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def described(module: nn.Module) -> set[str]:
    places = Reachable.of(module).places
    return {f"{place.describe(name)} of {place.module}" for place in places for name, _ in place.container.items()}


def test_objects_lists_and_globals_behind_an_attribute() -> None:
    module = denoiser()
    module[1].processor = Processor(Store())
    assert {"attribute processor.store.maps[0] of 1", "parameter bias of 0"} <= described(module)
    assert any("global SCALES[0]" in text for text in described(module))
    assert any("class Processor" in text for text in Reachable.of(module).foreign)


def test_what_a_hook_closes_over_and_what_it_is_bound_to() -> None:
    module, count = denoiser(), [0]

    def counting(_module: nn.Module, _args: Any, _output: Any) -> None:
        count[0] += 1

    module[0].register_forward_hook(counting)
    module[1].forward = functools.partial(type(module[1]).forward, module[1])
    assert "forward hook counting: variable count[0] of 0" in described(module)
    assert len(Reachable.of(module).tensors) == 4


class Settings:
    """A class as a namespace."""

    scale = 1.0


CONTEXT = contextvars.ContextVar("scale", default=1.0)
MODULE = types.ModuleType("settings_of_a_user")
MODULE.scale = 1.0  # type: ignore[attr-defined]
MODULE.other = 1.0  # type: ignore[attr-defined]


def test_what_code_of_the_users_reads_of_a_pipeline_a_class_a_module_and_a_context() -> None:
    module, pipe, array = denoiser(), Pipeline(nn.Identity()), numpy.ones(2)

    def scaling(_module: nn.Module, _args: Any, output: Any) -> Any:
        return output * pipe.progress[0] * pipe.rate * Settings.scale * MODULE.scale * CONTEXT.get() * array[0]

    module[0].register_forward_hook(scaling)
    found = described(module)
    for expected in (
        "variable pipe.progress[0]", "variable pipe.rate", "global Settings.scale", "global MODULE.scale",
        "global CONTEXT: context variable scale",
    ):  # fmt: skip
        assert any(expected in text for text in found), expected
    assert not any("pipe.denoiser" in text or "MODULE.other" in text for text in found)
    assert len(Reachable.of(module).tensors) == 5, "the array counts as one"
    assert ModuleState(module).differences() == []


def test_a_pipeline_and_a_cycle_are_not_followed() -> None:
    module = denoiser()
    module[0].pipe = Pipeline(module)
    module[1].parents = [module]
    assert not any("progress" in text for text in described(module))


def test_the_methods_of_libraries_are_known() -> None:
    assert Reachable.of(denoiser()).foreign == []


def test_a_cache_of_a_method_is_found() -> None:
    class Table(nn.Module):
        @functools.lru_cache  # noqa: B019
        def row(self, _n: int) -> torch.Tensor:
            return torch.zeros(2)

    table = Table()
    table.row(1)
    caches = [cache for cache in Reachable.of(table).caches if cache is Table.row]
    assert len(caches) == 1
