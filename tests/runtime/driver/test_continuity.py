"""Moves: over diffusers' samplers, each latent is its own trajectory's, and no other one's."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from runtime.driver import continuity
from runtime.driver.continuity import FOREIGN, NEAR, Moves
from runtime.driver.readback import Readback
from tests.support.schedulers import BETAS, DETERMINISTIC, scheduler_of

SHAPE = (2, 4, 8, 8)
NOISY = {"EulerAncestralDiscreteScheduler": BETAS, "KDPM2AncestralDiscreteScheduler": BETAS, "DDPMScheduler": BETAS}


def trajectory(name: str, config: dict[str, object], seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(latent, output) of every call: guidance of 7.5, and outputs that change smoothly."""
    scheduler, generator = scheduler_of(name, config, 12), torch.Generator().manual_seed(seed)
    latent, mean = (torch.randn(SHAPE[1:], generator=generator) for _ in range(2))
    made = []
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent
        output = torch.stack([torch.tanh(scaled + mean), torch.tanh(scaled - 0.2 * mean)])
        made.append((scaled.expand(SHAPE), output))
        options = {"generator": generator} if name in NOISY else {}
        latent = scheduler.step(output[0] + 7.5 * (output[1] - output[0]), timestep, latent, **options)[0]
    return made


@pytest.mark.parametrize("name", [*DETERMINISTIC, *NOISY])
def test_latents_are_explained_by_their_own_trajectory(name: str) -> None:
    config = {**DETERMINISTIC, **NOISY}[name]
    one, other = trajectory(name, config, 0), trajectory(name, config, 1)
    moves, share = Moves(), None
    for call, (latent, output) in enumerate(one):
        if call > 0:
            share = moves.unexplained(latent)
            assert not moves.is_foreign(share)
            assert moves.unexplained(other[call][0]) > share
        moves.add(latent, output, share)
        assert moves.is_foreign(moves.unexplained(torch.randn(SHAPE)))
    if name in DETERMINISTIC:
        assert moves.worst is not None
        assert moves.worst < 0.5


def test_one_row_that_is_foreign_is_enough() -> None:
    moves, latent, output = Moves(), torch.randn(4, 64), torch.randn(4, 64)
    moves.add(latent, output)
    assert moves.unexplained(latent - 0.1 * output) < 1e-6
    latent[2] = torch.randn(64)
    assert moves.unexplained(latent) > FOREIGN


def test_a_trajectory_of_nearly_nothing_but_noise_allows_it() -> None:
    moves, latent = Moves(), torch.randn(2, 64)
    moves.add(latent, latent)
    share = moves.unexplained(torch.randn(2, 64))
    assert moves.is_foreign(share)
    moves.add(latent, latent, share)
    assert not moves.is_foreign(1.0)


@pytest.mark.parametrize("shape", [(2, 8, 4), (2, 3, 4), (2, 5, 9)])
def test_what_latent_and_output_share_is_compared(shape: tuple[int, ...]) -> None:
    """Learned variances behind the output's channels, an image behind the latent's."""
    moves, latent, output = Moves(), torch.randn(2, 5, 4), torch.randn(shape)
    moves.add(latent, output)
    moved = latent.clone()
    part = [slice(0, min(pair)) for pair in zip(latent.shape, shape, strict=True)]
    moved[tuple(part)] -= 0.5 * output[tuple(part)]
    assert moves.unexplained(moved) < 1e-6


def test_what_cannot_be_compared_says_nothing() -> None:
    moves, latent = Moves(), torch.randn(2, 64)
    assert moves.unexplained(latent) == 0.0
    moves.add(latent, "no tensor")
    assert moves.unexplained(latent * 0.5) < 1e-6
    assert moves.unexplained(torch.full((2, 64), float("nan"))) == 0.0
    assert moves.unexplained(torch.zeros(2, 64)) == 0.0


def test_latents_of_no_elements_are_no_division_by_zero() -> None:
    moves, latent = Moves(), torch.randn(1, 0, 64)
    moves.add(latent, latent)
    assert moves.unexplained(latent) == 0.0


def test_a_latent_is_thinned_out_once_a_call_but_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def counted(tensor: torch.Tensor, part: tuple[int, ...]) -> Readback:
        nonlocal count
        count += 1
        return thinned(tensor, part)

    thinned = continuity._thinned
    monkeypatch.setattr(continuity, "_thinned", counted)
    moves, (first, second, third), output = Moves(), torch.randn(3, *SHAPE), torch.randn(SHAPE)
    moves.add(first, output)
    count = 0
    assert moves.unexplained(second) > FOREIGN
    moves.add(second, output)
    assert count == 2  # and the output
    assert moves.unexplained(0.9 * second + 0.1 * output) < 1e-6
    moves.add(third, output)  # not what was looked at
    assert moves.unexplained(0.9 * third + 0.1 * output) < 1e-6
    moves.look_later(second)  # whatever it holds by then, it was not looked at now
    second.copy_(first)
    moves.add(second, output)
    assert moves.unexplained(0.9 * first + 0.1 * output) < 1e-6


@pytest.mark.parametrize("name", [*DETERMINISTIC, *NOISY])
def test_a_rough_look_decides_as_an_exact_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**DETERMINISTIC, **NOISY}[name]
    one, other = trajectory(name, config, 0), trajectory(name, config, 1)
    exact, looks = continuity._unexplained, 0

    def counted(wanted: Readback, known: Sequence[Readback]) -> float:
        nonlocal looks
        looks += 1
        return exact(wanted, known)

    moves, share = Moves(), None
    for call, (latent, output) in enumerate(one):
        for asked in (other[call][0], torch.zeros(SHAPE), torch.randn(SHAPE), latent):
            share = moves.unexplained(asked)
            rough = moves.unexplained(asked, roughly=True)
            assert rough == share or share <= rough <= NEAR
        monkeypatch.setattr(continuity, "_unexplained", counted)
        moves.unexplained(latent, roughly=True)
        monkeypatch.setattr(continuity, "_unexplained", exact)
        moves.add(latent, output, share if call else None)
    if name in DETERMINISTIC:
        assert looks < len(one) / 2, "mostly the last latent alone explains the next one"


def test_a_rough_look_takes_no_row_of_zeros_for_an_explanation() -> None:
    moves, latent = Moves(), torch.randn(2, 64)
    known = latent.clone()
    known[1] = 0.0
    moves.add(known, "no tensor")
    assert moves.unexplained(latent, roughly=True) == moves.unexplained(latent) > FOREIGN


def test_nothing_is_said_of_latents_that_are_not_finite() -> None:
    moves, latent = Moves(), torch.randn(SHAPE)
    moves.add(latent, torch.randn(SHAPE))
    latent[0, 0, 0, 0] = float("nan")
    assert moves.unexplained(latent) == 0.0
