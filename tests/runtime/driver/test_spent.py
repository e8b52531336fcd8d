"""Spent: what trajectories have passed on is the generation's, be they of two denoisers, and no other's."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from runtime.driver.callers import caller_of
from runtime.driver.generations import Generation, Generations
from runtime.driver.spent import Spent, spent_by_latent
from tests.support.toy_plans import DENOISER, KINDS

FALLING = [900.0 - 100 * step for step in range(8)]


def test_a_second_denoisers_generation_goes_on_with_what_the_firsts_has_spent() -> None:
    timesteps, denoisers = torch.tensor(FALLING), list[Generations]()
    scheduler = SimpleNamespace(timesteps=timesteps)
    caller = caller_of(DENOISER, lambda: scheduler)
    first, second = Generations(set(), denoisers), Generations(set(), denoisers)
    generation = Generation(caller, timesteps, FALLING[0], True, 2, 2, KINDS["folded"].plan, open=1)
    first.begin(generation)
    for timestep in FALLING[:3]:
        generation.count(timestep, None, [0], 2)
    assert second.spent(caller, timesteps, FALLING[3]) is generation.spent
    assert second.spent(caller, timesteps.clone(), FALLING[3]) is not generation.spent, "of another run"
    assert second.spent(caller, timesteps, FALLING[0] + 1) is not generation.spent, "of the same timesteps once more"
    assert first.spent(caller, timesteps, FALLING[3]) is not generation.spent


def test_what_was_to_be_passed_on_is_taken_back() -> None:
    spent, before = Spent(0.1), Spent(0.1)
    spent.add(0.3, 0.2)
    assert spent == Spent(0.3, is_too_much=True)
    spent.take_back(before)
    assert spent == before


def test_each_latent_has_its_own() -> None:
    spent = spent_by_latent()
    spent["video"].most = 1.0
    assert spent["sound"].most == 0.0
