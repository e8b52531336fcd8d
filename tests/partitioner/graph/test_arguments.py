"""A call's arguments: bound by signature, flattened to paths, each with its role."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from partitioner.graph.arguments import bind_arguments, role_of
from partitioner.graph.export import trace
from partitioner.graph.ir import Role


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
    assert role_of("extra.ids", {"extra": Role.CONSTANT}) is Role.CONSTANT


def test_calls_are_bound_by_signature() -> None:
    class Keywords(nn.Module):
        def forward(self, x: torch.Tensor, t: Any = None, **others: Any) -> torch.Tensor:
            return x

    assert bind_arguments(Keywords(), (1, 2), {"scale": 3}) == {"x": 1, "t": 2, "scale": 3}
    assert bind_arguments(Keywords(), (), {"x": 1}) == {"x": 1}
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        bind_arguments(Nested(), (1, 2, 3), {"z": 3})
