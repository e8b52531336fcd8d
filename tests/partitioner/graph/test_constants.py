"""Tensors that are neither parameters nor buffers: graphs carry their true values, however a module is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from partitioner import compile
from partitioner.errors import TraceError
from partitioner.graph import reader
from partitioner.graph.constants import tensor_data, tensor_of
from partitioner.graph.export import fake_mode, trace
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import CONSTANT
from partitioner.planning.options import PlanOptions
from runtime.engine import Engine
from runtime.options import EngineOptions

CPU = torch.device("cpu")


class Tables(nn.Module):
    """Keeps tables beside its parameters, and writes numbers in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.scale = nn.Parameter(torch.randn(4))
        angles = torch.outer(torch.arange(3.0), 1 / 10 ** torch.arange(2.0))
        self.turns = torch.polar(torch.ones_like(angles), angles)
        self.tables = {"mask": [torch.zeros(4)]}
        self.tables["mask"][0][1:3] = torch.tensor([0.5, 2.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = torch.view_as_complex(self.layers[0](x).unflatten(-1, (2, 2))) * self.turns
        x = torch.view_as_real(turned).flatten(-2) * self.scale + self.tables["mask"][0]
        return self.layers[1](x) * torch.tensor([1.0, 2.0, 3.0, 4.0])


def traced(module: nn.Module, **changes: torch.Tensor) -> TracedGraph:
    return trace(module, {"x": torch.zeros(2, 3, 4), **changes}, {"x": "latent"}, model="mine")


def test_a_module_without_weights_has_the_constants_of_one_with_weights() -> None:
    state = torch.get_rng_state()
    with fake_mode():
        fake = traced(Tables().eval())
    assert torch.equal(torch.get_rng_state(), state)
    live = traced(Tables().eval())
    assert len(live.constants) == 3
    assert fake.fingerprint == live.fingerprint
    assert fake.computes_as(live)


def test_ranks_get_the_constants_that_they_read() -> None:
    module, x = Tables().eval(), torch.randn(2, 3, 4)
    plan = compile(module, {"x": x}, {"x": "latent"}, 2, options=PlanOptions(force=True))
    with Engine(module, plan, EngineOptions(transport="emulation", exact=True)) as engine, torch.no_grad():
        assert torch.equal(engine(x)[0], module(x))
        module.tables["mask"][0][0] = 7.0
        assert torch.equal(engine(x)[0], module(x)), "it is another constant by now"


def test_what_a_constant_holds_counts_in_the_fingerprint_but_for_last_bits() -> None:
    module = Tables().eval()
    before = traced(module)
    module.turns = torch.view_as_complex(torch.view_as_real(module.turns).nextafter(torch.tensor(9.0)))
    moved = traced(module)
    assert moved.fingerprint == before.fingerprint
    assert not moved.computes_as(before)
    module.turns = module.turns * 1.5
    assert traced(module).fingerprint != before.fingerprint
    whole = [tensor_data(torch.tensor(values)) for values in ([1, 2], [1, 3])]
    assert whole[0] is not None
    assert whole[1] is not None
    assert whole[0].digest != whole[1].digest


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4).T,
        torch.arange(6).view(2, 3)[:, 1:],
        torch.ones(2, dtype=torch.bfloat16).expand(3, 2),
        torch.tensor(True),
        torch.zeros(0, 2),
        torch.randn(2, dtype=torch.complex64).conj(),
        torch.tensor([float("inf"), float("nan"), -1.0]),
    ],
)
def test_a_tensor_comes_back_from_its_data(tensor: torch.Tensor) -> None:
    data = tensor_data(tensor)
    assert data is not None
    made = tensor_of(data, CPU)
    assert (made.dtype, made.stride()) == (tensor.dtype, data.meta.stride)
    torch.testing.assert_close(made, tensor, rtol=0, atol=0, equal_nan=True)


def test_values_that_nobody_knows_are_refused() -> None:
    with fake_mode():
        module = Tables().eval()
        for table in (module.layers[0].weight[0] * 2, torch.zeros(4).copy_(module.layers[0].weight[0])):
            module.tables["mask"][0] = table
            with pytest.raises(TraceError, match=r"module <root> .*reads a tensor.*whose values are not known"):
                traced(module)
        module.tables["mask"][0] = torch.zeros(4)
        module.tables["mask"][0][:] = module.layers[0].weight[0]
        with pytest.raises(TraceError, match="whose values are not known"):
            traced(module)


def test_a_constant_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_CONSTANT_BYTES", 15)
    with pytest.raises(TraceError, match=r"neither parameter nor buffer .*register it as a buffer"):
        traced(Tables().eval())


def test_a_constant_prints_briefly() -> None:
    graph = traced(Tables().eval())
    (line,) = [str(node) for node in graph.nodes if node.target == CONSTANT and "complex64" in str(node)]
    assert "graph.tensor(<complex64[3,2]: " in line
    assert len(line) < 120
    assert replace(graph.constants[0]) == graph.constants[0]
