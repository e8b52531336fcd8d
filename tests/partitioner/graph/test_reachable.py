"""Reachable: what a forward can get at, and what does not belong to the denoiser."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

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
