"""BoundCode computes what the module does, frees what is not read any more, and says which line is which node."""

from __future__ import annotations

import operator
import weakref

import pytest
import torch
from torch import fx

from runtime.worker.bound import BoundCode
from tests.support.engines import toy_module

CPU = torch.device("cpu")


def test_a_whole_denoiser_gives_the_modules_bits() -> None:
    module, values, _ = toy_module()
    with torch.no_grad():
        assert torch.equal(BoundCode(module).call(*values)[0], module(*values)[0])


def test_arguments_of_every_kind() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    table = graph.create_node("get_attr", "table", name="v0")
    both = graph.call_function(torch.ops.aten.cat.default, ([x, table], -1))
    ops = torch.ops.aten
    whole = graph.call_function(ops.full_like.default, (both, float("inf")), {"dtype": torch.float64, "device": CPU})
    parts = graph.call_function(ops.split_with_sizes.default, (both, [1, 3], 1))
    second = graph.call_function(operator.getitem, (parts, 1))
    same = graph.call_function(ops.mul.Tensor, (second, 0.5))
    graph.output((whole, same, x))
    module = fx.GraphModule({"table": torch.ones(2, 2)}, graph)
    given = torch.arange(4.0).view(2, 2)
    for one, other in zip(BoundCode(module).call(given), module(given), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_what_is_not_read_any_more_is_freed() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def noted(x: torch.Tensor) -> torch.Tensor:
        made = x + 1
        assert [ref() for ref in alive[:-1]] == [None] * len(alive[:-1])
        alive.append(weakref.ref(made))
        return made

    graph = fx.Graph()
    value = graph.placeholder("x")
    for _ in range(4):
        value = graph.call_function(noted, (value,))
    unread = graph.call_function(noted, (value,))
    graph.output((value,))
    (result,) = BoundCode(fx.GraphModule({}, graph)).call(torch.zeros(1))
    assert float(result) == 4.0
    assert alive[-1]() is None, unread


def test_lines_name_their_nodes() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.create_node("call_function", torch.neg, (x,), name="first")
    second = graph.create_node("call_function", torch.Tensor.view, (first, 7), name="second")
    graph.output((second,))
    bound = BoundCode(fx.GraphModule({}, graph))
    with pytest.raises(RuntimeError) as caught:
        bound.call(torch.zeros(2))
    frames = []
    traceback = caught.value.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code, traceback.tb_lineno))
        traceback = traceback.tb_next
    assert [bound.node_at[line] for code, line in frames if code is bound.code] == ["second"]
