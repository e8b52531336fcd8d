"""direct_trace: the same graph as torch.export's, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.graph import export
from partitioner.graph.direct_trace import NotDirect, direct_trace
from partitioner.graph.export import fake_mode, trace
from partitioner.graph.ir import TracedGraph
from partitioner.graph.torch_private.fakes import FakeTensorMode
from partitioner.graph.torch_private.fakes_with_constants import without_constants
from partitioner.models.built_in import built_in
from partitioner.models.find_spec import model_spec
from tests.support.small_models import small_denoiser, write_pipeline


class Block(nn.Module):
    """Views, in-place writes, several outputs, and a parameter with values."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)
        self.linear = nn.Linear(8, 16)
        self.mix = nn.Parameter(torch.Tensor([0.5]))
        self.register_buffer("table", torch.arange(8.0), persistent=False)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.transpose(1, 2)).transpose(1, 2) + self.table
        scale, gate = self.linear(x).chunk(2, dim=-1)
        gate = gate.clone()
        gate[:, 0] += 1
        return x * torch.sigmoid(self.mix) + nn.functional.dropout(scale * gate, 0.1, self.training) + shift


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.blocks[0].register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
        self.blocks[1].register_forward_hook(lambda _, __, output: output - 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, extra: dict[str, Any], scale: float = 1.0) -> Any:
        angle = time[:, None] * torch.exp(-torch.arange(8) / 8) * scale
        for block in self.blocks:
            x = block(x, angle[:, None].to(x.dtype))
        with torch.no_grad():
            heads = x.reshape(2, 3, 2, 4).transpose(1, 2)
            x = nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        return {"first": x + extra["shift"][0], "rest": [x.float().mean(), None]}


def inputs() -> dict[str, Any]:
    return {"x": torch.zeros(2, 3, 8), "time": torch.zeros(2), "extra": {"shift": [torch.zeros(3, 8)]}, "scale": 2.0}


ROLES = {"x": "latent", "time": "timestep", "extra": "prompt"}


def both_ways(
    build: Callable[[], nn.Module],
    arguments: Callable[[], dict[str, Any]],
    roles: Mapping[str, Any],
    patch: pytest.MonkeyPatch,
    mode: Callable[[], AbstractContextManager[None]] = fake_mode,
) -> tuple[TracedGraph, TracedGraph]:
    """The graph as it is traced, and as torch.export traces it."""
    with mode():
        direct = trace(build().eval(), arguments(), roles)
    patch.setattr(export, "direct_trace", refuse)
    with mode():
        return direct, trace(build().eval(), arguments(), roles)


def refuse(*_: Any) -> Any:
    raise NotDirect


def parts(graph: TracedGraph) -> list[Any]:
    """All that there is in a graph but for the names of values."""
    return [
        graph.fingerprint,
        graph.inputs,
        graph.form,
        [(p.path, p.meta, p.requires_grad) for p in graph.parameters],
        [(node.key, node.outputs, node.group, node.role) for node in graph.nodes],
    ]


@pytest.mark.parametrize("mode", [fake_mode, nullcontext], ids=["without weights", "with weights"])
def test_the_graph_is_that_of_torch_export(
    mode: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(export, "direct_trace", lambda *args: asked.append(direct_trace(*args)) or asked[-1])
    direct, exported = both_ways(Denoiser, inputs, ROLES, monkeypatch, mode)
    assert len(asked) == 1
    assert parts(direct) == parts(exported)


def test_weights_stay_as_they_are() -> None:
    module = Denoiser().eval()
    before = {name: (weight, weight.clone()) for name, weight in (*module.named_parameters(), *module.named_buffers())}
    trace(module, inputs(), ROLES)
    after = dict((*module.named_parameters(), *module.named_buffers()))
    assert list(after) == list(before)
    assert all(after[name] is weight and torch.equal(weight, values) for name, (weight, values) in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cogvideox-5b", "flux", "sana", "sdxl", "svd", "wan"])
def test_graphs_of_published_architectures_are_those_of_torch_export(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = "unet" if name in ("sdxl", "svd") else "transformer"
    write_pipeline(tmp_path, built_in(name).pipeline["_class_name"], small_denoiser(name), part)
    spec = model_spec(str(tmp_path), height=128, width=128)
    direct, exported = both_ways(spec.build, spec.example_inputs, spec.roles, monkeypatch)
    assert parts(direct) == parts(exported)


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = torch.arange(4.0)
        if kind == "tied weights":
            self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "a constant":
            return self.first(x) + self.table
        if self.kind == "a literal tensor":
            return self.first(x) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        if self.kind == "a shape changed in place":
            return self.first(x).clone().t_()
        with torch.autocast("cpu", enabled=False) if self.kind == "autocast" else nullcontext():
            return self.second(self.first(x))


@pytest.mark.parametrize(
    "kind", ["a constant", "a literal tensor", "a shape changed in place", "tied weights", "autocast"]
)
def test_what_is_out_of_the_ordinary_is_left_to_torch_export(kind: str) -> None:
    with fake_mode():
        module, x = Odd(kind).eval(), torch.zeros(2, 4)
        with without_constants(), pytest.raises(NotDirect):
            direct_trace(module, {"x": x}, lambda: "")
        assert trace(module, {"x": x}, {"x": "latent"}).latent_nodes


@pytest.mark.parametrize("kind", ["a constant", "autocast"])
def test_so_it_is_with_weights(kind: str) -> None:
    module, given = Odd(kind).eval(), {"x": torch.zeros(2, 4)}
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(NotDirect):
        direct_trace(module, given, lambda: "")
    assert trace(module, given, {"x": "latent"}).latent_nodes


def setting_elsewhere() -> tuple[bool, ...]:
    """By which another thread computes now, under an autocast."""

    def setting() -> tuple[bool, ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            backends: Any = torch.backends
            return backends.mkldnn.enabled, backends.cudnn.enabled, torch.is_autocast_enabled("cpu")

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(setting).result()


def test_other_threads_compute_meanwhile_as_ever() -> None:
    """With the same libraries, and under an autocast, which would end the trace of a forward that enters it."""
    usual = setting_elsewhere()

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(2, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert setting_elsewhere() == usual
            return self.norm(x)

    trace(Watched().eval(), {"x": torch.zeros(2, 8)}, {"x": "latent"})
