"""Groups of operators that torch.export makes are put back in their place, where they compute the same there."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from partitioner import compile, trace
from partitioner.errors import TraceError
from partitioner.planning.options import PlanOptions
from runtime.engine import Engine
from runtime.options import EngineOptions


class Rotary(nn.Module):
    """Computes positions under an autocast that is off, in which gradients are off, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            angles = torch.einsum("i,j->ij", torch.arange(3.0), torch.arange(4.0))
            with torch.set_grad_enabled(True):
                turned, left = torch.sin(angles), torch.cos(angles) * x
        return self.layer(x * turned) + left


class InFloat32(nn.Module):
    """Computes under an autocast to float32, which a cpu ignores and a GPU does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.float32):
            return torch.mm(x, x)


class CastInFloat32(InFloat32):
    """The same, of values that are float32 already there, as Mochi's rotary table."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.float32):
            y = x.transpose(0, 1).to(torch.float32)
            y = torch.mm(y, y)
        return x + y.to(x.dtype)


class Rotated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Rotary(), Rotary()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_regions_are_inlined_and_computed_exactly() -> None:
    module, x = Rotated().eval(), torch.randn(2, 3, 4)
    graph = trace(module, {"x": x}, {"x": "latent"})
    assert [node.module for node in graph.nodes if node.target == "aten.cos.default"] == ["first", "second"]
    plan = compile(module, {"x": x}, {"x": "latent"}, 2, options=PlanOptions(force=True))
    with Engine(module, plan, EngineOptions(transport="emulation", exact=True)) as engine, torch.no_grad():
        assert torch.equal(engine(x)[0], module(x))


def test_casts_that_depend_on_the_device_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a cpu ignores it
        trace(InFloat32().eval(), {"x": torch.zeros(2, 2)}, {"x": "latent"})
        with pytest.raises(TraceError, match=r"under torch\.autocast\('cpu', torch\.float32\), whose casts depend"):
            trace(InFloat32().eval(), {"x": torch.zeros(2, 2, dtype=torch.bfloat16)}, {"x": "latent"})
        graph = trace(CastInFloat32().eval(), {"x": torch.zeros(2, 2, dtype=torch.bfloat16)}, {"x": "latent"})
        assert [node.target for node in graph.nodes][-3:] == ["aten.mm.default", "aten.to.dtype", "aten.add.Tensor"]
