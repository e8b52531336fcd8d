"""The roles of a denoiser's arguments, as its calls show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.errors import UsageError
from partitioner.graph.nodes import Role
from partitioner.models.inputs import latent, prompt, timestep
from partitioner.models.seen_calls import SeenCall, SeenRoles, roles_of, see

CLEAN, TEXT, NONE = torch.zeros(1), torch.ones(1, 5, 3), torch.full((1, 5, 3), 2.0)


class Denoiser(nn.Module):
    def forward(self, x: Any, t: Any = None, text: Any = None, extra: Any = None, return_dict: bool = True) -> None:
        """Never called."""


def seen(
    shift: float, arguments: Callable[[int, torch.Tensor], list[dict[str, Any]]], steps: int = 3
) -> list[SeenCall]:
    """The calls of a loop whose latent moves with the denoiser's outputs. shift: makes these outputs others."""
    x, calls = torch.linspace(0, 1, 8).reshape(1, 2, 4), []
    for step in range(steps):
        calls += [see(Denoiser(), (), given, x) for given in arguments(step, x)]
        x = x.sin() + shift
    return calls


def roles(arguments: Callable[[int, torch.Tensor], list[dict[str, Any]]]) -> SeenRoles:
    return roles_of(seen(0.1, arguments), seen(0.2, arguments))


def test_latent_timestep_and_prompt() -> None:
    found = roles(lambda step, x: [{"x": x, "t": torch.tensor([900 - step]), "text": TEXT, "return_dict": False}])
    assert found.inputs("float32") == {"x": latent(1, 2, 4), "t": timestep(1, dtype=None), "text": prompt(1, 5, 3)}
    assert str(found) == "latent: x; timestep: t; prompt: text"
    assert (found.steps, found.calls_per_step) == (3, 1)


def test_a_timestep_that_is_a_number_is_an_input() -> None:
    found = roles(lambda step, x: [{"x": x, "t": 0.5 - 0.1 * step, "extra": {"scale": 2.0}}])
    assert found.inputs("float32") == {"x": latent(1, 2, 4), "t": timestep(dtype=None), "extra": {"scale": 2.0}}


def test_one_timestep_for_each_token_of_which_some_are_zero() -> None:
    found = roles(lambda step, x: [{"x": x, "t": torch.tensor([[0.0, 1.0 - step / 4, 1.0 - step / 4]])}])
    assert found.roles == {"x": Role.LATENT, "t": Role.TIMESTEP}


def test_one_timestep_for_each_frame_of_which_some_are_always_the_same() -> None:
    """As where the first frame of a video is given, with some little noise."""
    found = roles(lambda step, x: [{"x": x, "t": torch.tensor([[0.01, 1.0 - step / 4, 1.0 - step / 4]])}])
    assert found.roles == {"x": Role.LATENT, "t": Role.TIMESTEP}
    assert roles(lambda step, x: [{"x": x, "t": torch.tensor([step, step + 1])}]).roles["t"] is Role.STEP


def test_two_calls_per_step_have_prompts_that_differ() -> None:
    masks = [torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0, 0]])]

    def both(step: int, x: torch.Tensor) -> list[dict[str, Any]]:
        return [{"x": x, "t": torch.tensor(9 - step), "text": text, "extra": mask}
                for text, mask in zip((TEXT, NONE), masks, strict=True)]  # fmt: skip

    found = roles(both)
    assert (found.steps, found.calls_per_step) == (3, 2)
    assert found.roles == {"x": Role.LATENT, "t": Role.TIMESTEP, "text": Role.PROMPT, "extra": Role.PROMPT}
    without = roles_of(seen(0.1, both))  # and what the denoiser's outputs do is not needed for that
    assert without.roles == found.roles


def test_calls_of_a_step_may_have_more_rows_or_fewer() -> None:
    """As where one call holds both halves of guidance, and another skips layers for one of them."""

    def both(step: int, x: torch.Tensor) -> list[dict[str, Any]]:
        whole = {"x": torch.cat([x, x]), "t": torch.tensor([9 - step] * 2), "text": torch.cat([NONE, TEXT])}
        return [whole, {"x": x, "t": torch.tensor([9 - step]), "text": TEXT}]

    found = roles(both)
    assert (found.steps, found.calls_per_step) == (3, 2)
    assert found.roles == {"x": Role.LATENT, "t": Role.TIMESTEP, "text": Role.PROMPT}


def test_what_follows_the_outputs_or_the_step_and_is_no_latent_is_a_step_s() -> None:
    def call(step: int, x: torch.Tensor) -> list[dict[str, Any]]:
        return [{"extra": {"residual": x[..., :1] * 2, "weights": torch.tensor([1.0, step])}, "x": x, "t": -step}]

    assert roles(call).roles == {
        "x": Role.LATENT, "t": Role.TIMESTEP, "extra.residual": Role.STEP, "extra.weights": Role.STEP
    }  # fmt: skip


def test_a_second_timestep_is_one_if_it_is_the_same() -> None:
    found = roles(lambda step, x: [{"x": x, "t": torch.tensor(step), "extra": [torch.tensor([step]), step + 1.0]}])
    assert found.roles == {"x": Role.LATENT, "t": Role.TIMESTEP, "extra.0": Role.TIMESTEP, "extra.1": Role.STEP}


def test_the_call_that_most_are_like_is_the_example() -> None:
    found = roles(lambda step, x: [{"x": x, "t": step, "text": TEXT[:, :4] if step == 0 else TEXT}])
    assert found.example.tensors["text"].shape == (1, 5, 3)


def test_calls_that_show_too_little_are_refused() -> None:
    with pytest.raises(UsageError, match="none of the denoiser's arguments changed with its outputs"):
        roles(lambda step, x: [{"x": CLEAN, "t": step}])
    with pytest.raises(UsageError, match="none of the denoiser's arguments changed"):
        roles_of(seen(0.1, lambda step, x: [{"x": x, "t": step}], steps=1))
