"""Roles from a module's calls in any loop, and a plan from them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partitioner.errors import UsageError
from partitioner.graph.nodes import Role
from partitioner.models.guess_roles import guess_roles, record_calls
from partitioner.plan.plan import Plan
from partitioner.planning.compile import compile
from partitioner.planning.options import PlanOptions


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, text: torch.Tensor, x: torch.Tensor, t: float, mask: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x * (1 + t) + text)
        return x if mask is None else x * mask


@torch.no_grad()
def sample(denoiser: Denoiser, steps: int = 2) -> None:
    x = torch.ones(3, 8)
    for step in range(steps):
        x = x - denoiser(torch.zeros(1, 8), x, 1 - step / steps, mask=torch.ones(3, 1))


def test_roles_follow_from_two_steps_of_a_loop() -> None:
    denoiser = Denoiser().eval()
    with record_calls(denoiser) as calls:
        sample(denoiser)
    sample(denoiser)
    assert [list(call) for call in calls] == [["text", "x", "t", "mask"]] * 2
    example, roles, words, calls_per_step = guess_roles(denoiser, calls)
    assert roles == {"text": Role.PROMPT, "x": Role.LATENT, "t": Role.TIMESTEP, "mask": Role.PROMPT}
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "text": (1, 8), "x": (3, 8), "t": (), "mask": (3, 1)
    }  # fmt: skip
    assert (words, calls_per_step) == ("latent: x; timestep: t; prompt: text, mask", 1)


@torch.no_grad()
def test_compile_sees_that_a_step_calls_the_module_twice() -> None:
    denoiser, x = Denoiser().eval(), torch.ones(3, 8)
    with record_calls(denoiser) as calls:
        for step in range(3):
            made = [denoiser(torch.full((1, 8), text), x, 1 - step / 3, mask=torch.ones(3, 1)) for text in (0.0, 1.0)]
            x = x - made[1] + 0.5 * made[0]
    plan = compile(denoiser, calls, devices=2, options=PlanOptions(force=True))
    assert (plan.branches, plan.streams, plan.calls_per_step, plan.components) == (2, 2, 2, 1)
    one, roles, force = calls[:1], plan_roles(plan), PlanOptions(force=True)
    said = compile(denoiser, one, roles, 2, guidance_style="two-calls", options=force)
    assert (said.branches, said.streams, said.guidance_style) == (2, 2, "two-calls")
    with pytest.raises(UsageError, match="guidance_style is batch, and a call of 3 rows holds no two halves"):
        compile(denoiser, one, roles, 2, guidance_style="batch")


def plan_roles(plan: Plan) -> dict[str, str]:
    return {item.path: item.role for item in plan.inputs}


def test_compile_guesses_and_prints_what_it_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    denoiser = Denoiser().eval()
    with record_calls(denoiser) as calls:
        sample(denoiser, steps=3)
    plan = compile(denoiser, calls, devices=2, options=PlanOptions(force=True))
    assert {item.path: item.role for item in plan.inputs} == {
        "text": "prompt", "x": "latent", "t": "timestep", "mask": "prompt"
    }  # fmt: skip
    assert capsys.readouterr().err == (
        "partitioner.compile: guessed from 3 calls: latent: x; timestep: t; prompt: text, mask\n"
    )


def test_one_call_shows_too_little() -> None:
    with pytest.raises(UsageError, match=r"pass the arguments of consecutive calls, as partitioner\.record_calls"):
        compile(Denoiser(), {"text": torch.zeros(1, 8), "x": torch.zeros(3, 8), "t": 0.5})
