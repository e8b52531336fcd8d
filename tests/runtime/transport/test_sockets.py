"""SocketMailbox, and that on one machine: tensors of every dtype and layout. What they refuse: tests/runtime/faults."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import partitioner
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import equal, plan_of


class Everything(nn.Module):
    """Its first half makes tensors of every dtype and layout, its second reads them."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        made: list[torch.Tensor] = [
            x > 0, x.sum(), (x * 9).long(), (x * 9).int(), x.bfloat16() * 3, x.half() * 3, x.double() / 3,
            (x * 9).to(torch.int8), (x.abs() * 9).to(torch.uint8), x.transpose(0, 1) + 1,
            (x[None, :, :, None] + 1).contiguous(memory_format=torch.channels_last), (x[:1] + 1).expand(4, 6),
            torch.complex(x, x + 1), x[:, ::2] + 0, (x * 2).chunk(2, dim=1)[1],
            (x[0, 0] + 1).expand(2)[:1],  # one element of stride 0, as half a batch of timesteps is
        ]  # fmt: skip
        total = x * 0
        for tensor in made:
            real = tensor.real * 1 if tensor.is_complex() else tensor * 1
            total = total + real.float().mean().nan_to_num() + real.float().sum()
        return (total,)


@pytest.mark.processes
@pytest.mark.parametrize("shared", [False, True], ids=["sockets", "same machine"])
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_every_dtype_and_layout_arrives_as_it_was_sent(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("runtime.ranks.processes", "runtime.transport.neighbours"):
        monkeypatch.setattr(f"{module}.SUPPORTED", shared)
    module = Everything().eval()
    graph = partitioner.trace(module, {"x": torch.zeros(4, 6)}, {"x": "latent"}, model="everything")
    nodes = [node.name for node in graph.latent_nodes]
    middle = next(node.name for node in graph.latent_nodes if node.target == "aten.mul.Tensor" and node.args[1] == 0)
    cut = nodes.index(middle)
    plan = plan_of(graph, {name: int(index >= cut) for index, name in enumerate(nodes)}, warmup=2)
    dtypes = {boundary.dtype for boundary in plan.boundaries}
    assert dtypes >= {
        "bool", "int64", "int32", "int8", "uint8", "bfloat16", "float16", "float64", "float32", "complex64",
    }  # fmt: skip
    inputs = [torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    got: dict[str, Any] = {}
    for transport in ("processes", "emulation"):
        with Engine(module, plan, EngineOptions(transport=transport, predictor="linear")) as engine:
            got[transport] = [engine(x)[0] for x in inputs]
    assert equal(got["processes"], got["emulation"])
    assert equal(got["processes"][:2], [module(x)[0] for x in inputs[:2]])
