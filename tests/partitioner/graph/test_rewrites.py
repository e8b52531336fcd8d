"""Rewrites: in force while a denoiser is traced, where the lines that they replace are there."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from partitioner import register_rewrite, trace
from partitioner.errors import TraceError
from partitioner.graph.rewrites import REWRITES, rewritten

GATE = f"{__name__}:Gate.forward"


def found(function: str) -> Any:
    """The function that a rewrite names."""
    module, _, path = function.partition(":")
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


class Gate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # a branch on a value
        if x.sum() > 0:
            x = x * 2
        if x.sum() <= 0:
            x = -x
        return x


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = dict(REWRITES)
    yield
    REWRITES.clear()
    REWRITES.update(before)


def test_a_rewritten_function_is_traced_and_left_as_it_was() -> None:
    x = torch.ones(2, 2)
    with pytest.raises(TraceError, match="module <root> \\(Gate\\)"):
        trace(Gate().eval(), {"x": x}, {"x": "latent"})
    register_rewrite(
        GATE,
        (
            """
            if x.sum() > 0:
                x = x * 2
            if x.sum() <= 0:
                x = -x
            """,
            "x = torch.where(x.sum() > 0, x * 2, -x)",
        ),
    )
    before = Gate.forward
    graph = trace(Gate().eval(), {"x": x}, {"x": "latent"})
    assert "aten.where.self" in {node.target for node in graph.nodes}
    assert Gate.forward is before
    with rewritten():
        assert torch.equal(Gate()(-x), x)
        assert Gate.forward.__globals__ is before.__globals__


class Remembering(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = tuple(x.shape)
        if x.sum() > 0:
            x = x * 2
        return x


def test_it_is_in_force_while_what_the_denoiser_keeps_is_looked_at() -> None:
    lines = ("if x.sum() > 0:\n    x = x * 2", "x = torch.where(x.sum() > 0, x * 2, x)")
    register_rewrite(f"{__name__}:Remembering.forward", lines)
    assert trace(Remembering().eval(), {"x": torch.ones(2, 2)}, {"x": "latent"}).latent_nodes


def test_a_rewrite_of_other_lines_or_of_nothing_does_nothing() -> None:
    register_rewrite(GATE, ("if x.mean() > 0:", "if True:"))
    register_rewrite("not.imported:Gate.forward", ("if True:", "if False:"))
    register_rewrite(f"{__name__}:Missing.forward", ("if True:", "if False:"))
    register_rewrite("torch:sin", ("if True:", "if False:"))
    before = Gate.forward, torch.sin
    with rewritten():
        assert before == (Gate.forward, torch.sin)
