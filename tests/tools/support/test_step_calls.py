"""The calls that a pipeline makes at each timestep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from partitioner.plan.plan import Plan
from tools.support.step_calls import StepCalls, step_calls


class Denoiser(nn.Module):
    def forward(self, latent: torch.Tensor, timestep: Any = None, text: str = "") -> torch.Tensor:
        return latent


def of_inputs(*roles: str) -> Plan:
    return cast(Plan, SimpleNamespace(inputs=[SimpleNamespace(path=role, role=role) for role in roles]))


@pytest.mark.parametrize("kind", [float, lambda time: torch.tensor([time, time])])
def test_calls_at_one_timestep_are_one_steps(kind: Any) -> None:
    pipe = SimpleNamespace(unet=Denoiser(), transformer_2=Denoiser())
    with step_calls(pipe, {"unet": of_inputs("latent", "timestep"), "transformer_2": of_inputs("latent")}) as made:
        for time in (9, 6, 3):
            pipe.unet(torch.ones(2), kind(time), text="a")
            pipe.unet(torch.ones(1), kind(time)[:1] if isinstance(kind(time), torch.Tensor) else time, text="b")
            pipe.transformer_2(torch.ones(1))
    pipe.unet(torch.ones(1), kind(0))
    assert (made.total, made.per_step) == (9, 2)
    assert (made.could_be_lagged(1), made.could_be_lagged(2), made.could_be_lagged(9)) == (6, 3, 0)
    assert made.could_be_foreseen() == 2


def test_a_step_of_another_number_of_calls_is_no_rule() -> None:
    assert StepCalls({"unet": [9, 9, 9, 6, 6, 3, 3, 0]}).per_step == 2
    assert StepCalls({"unet": []}).per_step == 1
    assert StepCalls().per_step == 0
