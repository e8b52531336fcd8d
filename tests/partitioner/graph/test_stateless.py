"""check_stateless: a forward that does not do the same at every call is refused, and is as it was afterwards."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.errors import TraceError
from partitioner.graph.export import trace
from partitioner.graph.module_state import ModuleState

CALLS = [0]


class Counting:
    """A processor that works otherwise at every step, as prompt-to-prompt does."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.step += 1
        return hidden * self.step


class Layer(nn.Module):
    """Does what its kind says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.processor = Counting()
        self.kind = kind
        self.maps: list[torch.Tensor] = []
        self.kept: Any = None
        self.is_first = True

    @functools.lru_cache  # noqa: B019
    def positions(self) -> torch.Tensor:
        return torch.arange(4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        if self.kind == "processor":
            x = self.processor(x)
        elif self.kind == "list":
            self.maps.append(x)
        elif self.kind == "last":
            self.kept = x
        elif self.kind == "global":
            CALLS[0] += 1
        elif self.kind == "first":
            x, self.is_first = (x * 2 if self.is_first else x), False
        elif self.kind == "of the first input":
            self.kept = x * 2 if self.kept is None else self.kept
            x = x + self.kept
        elif self.kind == "memo":
            self.kept = torch.arange(4.0) if self.kept is None else self.kept
            x = x + self.kept
        elif self.kind == "cached method":
            x = x + self.positions()
        elif self.kind == "same again":
            self.kept = [4, "a"]
        return x


def denoiser(kind: str) -> nn.Sequential:
    return nn.Sequential(nn.Identity(), Layer(kind)).eval()


def traced(module: nn.Module) -> Any:
    return trace(module, {"input": torch.zeros(2, 4)}, {"input": "latent"}, model="mine")


STATES = {
    "processor": r"every call of mine changes attribute processor\.step of module 1\. .* take that processor",
    "list": r"every call of mine changes attribute maps\[1\] of module 1",
    "last": "every call of mine changes attribute kept of module 1",
    "global": r"every call of mine changes .*global CALLS\[0\]",
    "first": "two equal calls of mine do different things: the first one changes attribute is_first of module 1",
    "of the first input": "two equal calls of mine do different things: the first one changes attribute kept",
}


@pytest.mark.parametrize("kind", STATES)
def test_state_is_refused_and_put_back(kind: str) -> None:
    module = denoiser(kind)
    before = ModuleState(module)
    with pytest.raises(TraceError, match=STATES[kind]):
        traced(module)
    assert before.differences() == []
    assert CALLS == [0]


@pytest.mark.parametrize("kind", ["memo", "cached method", "same again", "none"])
def test_what_is_computed_once_is_no_state(kind: str) -> None:
    module = denoiser(kind)
    before = ModuleState(module)
    with torch.no_grad():
        traced(module)
        assert before.differences() == []
        assert type(module(torch.ones(2, 4))) is torch.Tensor


def test_what_a_method_has_kept_of_a_real_call_is_no_constant_of_the_graph() -> None:
    module = denoiser("cached method")
    with torch.no_grad():
        module(torch.ones(2, 4))
        traced(module)


def test_a_hook_that_counts_is_refused_by_its_name() -> None:
    module, count = denoiser("none"), 0

    def every_other(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return output * (count % 2)

    module[1].register_forward_hook(every_other)
    with pytest.raises(TraceError, match="forward hook every_other: variable count of module 1"):
        traced(module)
    assert count == 0


def test_what_no_attribute_shows_is_seen_in_what_is_done() -> None:
    module = denoiser("none")
    counter = iter(range(100))
    module[1].register_forward_hook(lambda _module, _args, output: output * next(counter))
    with pytest.raises(TraceError, match="two equal calls of mine do different things: code takes part of"):
        traced(module)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FirstBlockCacheConfig", "PyramidAttentionBroadcastConfig", "FasterCacheConfig"])
def test_the_caches_of_diffusers_are_refused(name: str) -> None:
    import diffusers

    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    arguments = {
        "hidden_states": torch.zeros(1, 4, 16), "encoder_hidden_states": torch.zeros(1, 3, 32),
        "pooled_projections": torch.zeros(1, 32), "timestep": torch.zeros(1), "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3), "return_dict": False,
    }  # fmt: skip
    roles = {**dict.fromkeys(arguments, "prompt"), "hidden_states": "latent", "timestep": "timestep"}
    options: Any = {"threshold": 0.1}
    if name != "FirstBlockCacheConfig":
        options = {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: 500}
    transformer.enable_cache(getattr(diffusers, name)(**options))
    with pytest.raises(TraceError, match=r"_blocks\.0.*caches? "), transformer.cache_context("cond"):
        trace(transformer, arguments, roles)
    transformer.disable_cache()
    trace(transformer, arguments, roles)
