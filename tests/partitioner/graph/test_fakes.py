"""A module that cannot be traced where it lies is traced as if it lay on the cpu, and is as it was afterwards."""

from __future__ import annotations

import torch
from torch import nn

from partitioner.graph.export import trace
from partitioner.graph.fakes import traceable
from tests.support.toy_denoiser import ROLES, Denoiser, inputs


def test_a_module_on_another_device_is_traced_as_on_the_cpu() -> None:
    here, elsewhere = Denoiser().eval(), Denoiser().eval().to("meta")
    elsewhere.blocks[0].conv.weight = elsewhere.blocks[1].conv.weight
    here.blocks[0].conv.weight = here.blocks[1].conv.weight
    before = dict(elsewhere.named_parameters())
    with traceable(elsewhere):
        assert elsewhere.blocks[0].conv.weight is elsewhere.blocks[1].conv.weight
        graph = trace(elsewhere, inputs(), ROLES)
    assert graph.fingerprint == trace(here, inputs(), ROLES).fingerprint
    after = dict(elsewhere.named_parameters())
    assert all(after[path] is parameter for path, parameter in before.items())


def test_a_module_on_the_cpu_is_left_as_it_is() -> None:
    layer = nn.Linear(2, 2)
    weight = layer.weight
    with traceable(layer):
        assert layer.weight is weight
        assert torch.ones(1).sum() == 1, "no fakes"
