"""A call's arguments: bound by signature, flattened to paths, each with its role."""

from __future__ import annotations

import collections
import enum
import inspect
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from partitioner.errors import TraceError
from partitioner.graph.arguments import bind_arguments, flatten_arguments, role_of
from partitioner.graph.export import trace
from partitioner.graph.nodes import Role


class Nested(nn.Module):
    def forward(self, x: torch.Tensor, extra: dict[str, Any], rotary: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return x * extra["ids"] + rotary[0] - rotary[1]


def test_nested_arguments_have_paths_and_the_longest_prefix_gives_the_role() -> None:
    arguments = {
        "x": torch.zeros(2), "extra": {"ids": torch.zeros(2), "kind": "a"}, "rotary": (torch.zeros(2), torch.ones(2)),
    }  # fmt: skip
    roles = {"x": "latent", "extra": "prompt", "rotary": "prompt", "rotary.1": "timestep"}
    graph = trace(Nested().eval(), arguments, roles)
    assert {item.name: item.role for item in graph.inputs} == {
        "x": Role.LATENT, "extra.ids": Role.PROMPT, "rotary.0": Role.PROMPT, "rotary.1": Role.TIMESTEP,
    }  # fmt: skip
    assert graph.literals == (("extra.kind", "a"),)
    assert graph.containers == (("rotary", "tuple"),)
    assert role_of("extra.ids", {"extra": Role.CONSTANT}) is Role.CONSTANT


def test_calls_are_bound_by_signature() -> None:
    class Keywords(nn.Module):
        def forward(self, x: torch.Tensor, t: Any = None, **others: Any) -> torch.Tensor:
            return x

    assert bind_arguments(Keywords(), (1, 2), {"scale": 3}) == {"x": 1, "t": 2, "scale": 3}
    assert bind_arguments(Keywords(), (), {"x": 1}) == {"x": 1}
    # None says something only where it is not what is there without it
    assert bind_arguments(Keywords(), (), {"x": None, "t": None, "z": None}) == {"x": None, "z": None}
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        bind_arguments(Nested(), (1, 2, 3), {"z": 3})


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {}), ((1, 2, 3, 4), {"scale": 5}), ((1, None), {"z": None, "t": None}), ((), {"t": 2, "x": 1})],
)
def test_calls_are_bound_as_python_does_whatever_was_bound_before(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    class Anything(nn.Module):
        def forward(self, x: Any, y: Any = None, *rest: Any, t: Any = None, **others: Any) -> torch.Tensor:
            return torch.ones(1)

    module, bound = Anything(), inspect.signature(Anything().forward).bind(*args, **kwargs).arguments
    others = bound.pop("others", {})
    expected = {**bound, **others}
    expected = {name: value for name, value in expected.items() if value is not None or name not in ("y", "t")}
    for _ in range(2):
        bind_arguments(module, (7, 8, 9), {"t": 3})
        assert list(bind_arguments(module, args, kwargs).items()) == list(expected.items())
    for _ in range(2):
        with pytest.raises(TypeError, match="missing a required argument: 'x'"):
            bind_arguments(module, (), {"t": 1})


def test_a_wrapper_that_takes_anything_is_bound_as_what_it_wraps() -> None:
    module = Nested()
    inner = module.forward
    module.forward = lambda x, *args, **kwargs: inner(x, *args, **kwargs)  # type: ignore[method-assign, assignment]
    assert bind_arguments(module, (1, 2), {"rotary": 3}) == {"x": 1, "extra": 2, "rotary": 3}


def test_numbers_of_numpy_and_sizes_are_plain_values() -> None:
    arguments = {"scale": numpy.float32(0.5), "size": torch.Size([2, 3]), "on": numpy.bool_(True)}
    flat = flatten_arguments(arguments)
    assert flat.values == {"scale": 0.5, "size.0": 2, "size.1": 3, "on": True}
    assert {type(value) for value in flat.values.values()} == {float, int, bool}
    assert flat.containers == {"size": "tuple"}


Point = collections.namedtuple("Point", "x y")
Kind = enum.Enum("Kind", "A B")
Loop: list[Any] = []
Loop.append(Loop)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Point(1, 2), "argument a.b is a .*Point; expected tensors, numbers, strings, None, or plain dicts, lists"),
        (Kind.A, "argument a.b is a .*Kind; .*pass its value or its parts"),
        (torch.float16, r"argument a.b is a torch\.dtype"),
        (numpy.zeros(2), r"argument a.b is a numpy\.ndarray"),
        ({"c.d": 1}, "argument a.b has the key 'c.d'; its paths would be ambiguous"),
        ({0: 1}, "argument a.b has the key 0; its paths would be ambiguous"),
        (Loop, "argument a is nested more than 32 deep, or holds itself"),
        (torch.zeros(1, dtype=torch.uint32), r"argument a.b is a tensor of torch\.uint32, which a plan cannot carry"),
    ],
)
def test_what_no_plan_can_carry_is_refused_in_a_sentence(value: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        flatten_arguments({"a": {"b": value}})


def test_a_call_that_the_module_does_not_take_is_refused_in_a_sentence() -> None:
    with pytest.raises(TraceError, match=r"custom \(Nested\) cannot be called with these .*missing.*'rotary'"):
        trace(Nested().eval(), {"x": torch.zeros(2), "extra": {}}, {"x": "latent"})
