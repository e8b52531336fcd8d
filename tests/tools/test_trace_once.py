"""trace_once: one trace for what is traced alike, whoever asks and wherever it lies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.graph import export
from runtime.driver import traced_graphs
from tests.support.engines import toy, toy_graph
from tools import trace_once
from tools.trace_once import Traces, traced_once

ARGUMENTS = {"x": torch.zeros(1, 2)}
ROLES = {"x": "latent"}


class Configured(nn.Identity):
    """As diffusers' models are: what they were made with is in a configuration, and not in what is printed of them."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What is traced in the test; any graph comes of it."""
    made: list[nn.Module] = []
    graph = toy_graph(toy())

    def trace(denoiser: nn.Module, *_: Any, model: str) -> Any:
        made.append(denoiser)
        return replace(graph, model=model)

    monkeypatch.setattr(trace_once, "_trace", trace)
    return made


def test_a_folder_and_a_name_make_no_other_trace_and_a_configuration_does(traced: list[nn.Module]) -> None:
    here, there = (Configured(scale=1, _name_or_path=folder) for folder in ("here", "there"))
    other = Configured(scale=2, _name_or_path="here")
    known = Traces()
    graphs = [
        known.trace(each, ARGUMENTS, ROLES, model=name) for each, name in zip((here, there, other), "abc", strict=True)
    ]
    assert [graph.model for graph in graphs] == ["a", "b", "c"]
    assert traced == [here, other]
    known.trace(here, {"x": torch.zeros(2, 2)}, ROLES)
    assert traced == [here, other, here]


def test_what_has_a_hook_is_traced_anew(traced: list[nn.Module]) -> None:
    plain, hooked = Configured(), Configured()
    hooked.register_forward_hook(lambda *_: None)
    known = Traces()
    for each in (plain, hooked, hooked, plain):
        known.trace(each, ARGUMENTS, ROLES)
    assert traced == [plain, hooked, hooked]


def test_a_block_within_another_shares_its_traces_and_none_is_left(traced: list[nn.Module]) -> None:
    before = export.trace
    denoiser = Configured()
    known = Traces()
    with traced_once(plans=True, known=known):
        export.trace(denoiser, ARGUMENTS, ROLES)
        with traced_once():
            vars(traced_graphs)["trace"](denoiser, ARGUMENTS, ROLES, model="a")
    assert export.trace is before
    with traced_once(plans=True, known=known):
        export.trace(denoiser, ARGUMENTS, ROLES)
    assert traced == [denoiser]
    with traced_once(plans=True):
        export.trace(denoiser, ARGUMENTS, ROLES)
    assert len(traced) == 2
