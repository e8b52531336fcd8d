"""Parameters require gradients where the module's own do, so that torch chooses the module's own kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partitioner import compile
from partitioner.graph.export import trace
from partitioner.planning.options import PlanOptions
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.worker.static_values import static_values


class Transposed(nn.Module):
    """Linear layers on rows that lie across memory, as in SDXL's UNet (use_linear_projection)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x.transpose(1, 2)).tanh().transpose(1, 2).contiguous()
        return x


@pytest.mark.parametrize("trained", [True, False])
def test_a_denoiser_in_half_precision_gives_its_very_bits(trained: bool) -> None:
    torch.manual_seed(0)
    module = Transposed().eval().half().requires_grad_(trained)
    latent = torch.randn(2, 32, 256).half()
    plan = compile(module, {"x": latent}, {"x": "latent"}, devices=2, options=PlanOptions(force=True, mode="async"))
    assert plan.components == 2
    with Engine(module, plan, EngineOptions(transport="emulation", exact=True)) as engine, torch.no_grad():
        before = module(latent)
        assert torch.equal(engine(latent)[0], before)
        module.requires_grad_(not trained)
        assert not torch.equal(module(latent), before)
        assert torch.equal(engine(latent)[0], module(latent))


def test_what_the_module_says_is_kept_and_the_given_tensors_are_not_changed() -> None:
    module = Transposed().eval()
    module.layers[0].requires_grad_(False)
    graph = trace(module, {"x": torch.zeros(1, 32, 2)}, {"x": "latent"})
    state = module.state_dict()
    values = static_values(graph.parameters, state, None)
    asked = [values[parameter.name].requires_grad for parameter in graph.parameters]
    assert asked == [False, False, True, True, True, True, True, True]
    assert not any(tensor.requires_grad for tensor in state.values())
