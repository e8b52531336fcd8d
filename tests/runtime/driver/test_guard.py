"""Guard: how much an output's error is worth in the last latent, and which calls it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runtime.driver.guard import FLOW_PRIOR, PRIOR, Guard, bound_of
from runtime.driver.noise_schedule import NoiseSchedule, noise_schedule_of
from runtime.driver.output_forecast import forecast_of
from tests.support.schedulers import BETAS, scheduler_of

SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {**BETAS, "clip_sample": False}),
    ("EulerDiscreteScheduler", BETAS),
    ("FlowMatchEulerDiscreteScheduler", {}),
]


def _schedule(name: str, options: dict[str, Any], steps: int = 20) -> tuple[Any, NoiseSchedule]:
    scheduler = scheduler_of(name, options, steps)
    found = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert isinstance(found, NoiseSchedule)
    return scheduler, found


@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_weights_are_what_an_error_of_an_output_makes_of_the_last_latent(name: str, options: dict[str, Any]) -> None:
    """Against schedulers that are stepped, with the best denoiser of Gaussian latents of the guard's variance."""
    _scheduler, known = _schedule(name, options)
    flow = known.flow
    prior = FLOW_PRIOR if flow else PRIOR

    def last(changed: int | None) -> float:
        made = scheduler_of(name, options, 20)
        x = torch.full((1, 1), 0.7, dtype=torch.float64)
        x = x if flow else x * float(made.init_noise_sigma)
        for call, timestep in enumerate(made.timesteps):
            passed = made.scale_model_input(x, timestep) if hasattr(made, "scale_model_input") else x
            clean = 1 - known.level[call] if flow else known.scale[call]
            noise = known.level[call] if flow else known.scale[call] * known.level[call]
            found = clean * prior * passed / (clean**2 * prior + noise**2)
            epsilon = (passed - clean * found) / noise
            output = (epsilon - found if flow else epsilon) + (1e-3 if call == changed else 0.0)
            x = made.step(output, timestep, x)[0].double()
        return float(x)

    guard, right = Guard(known, 30.0), last(None)
    for call in range(19):
        worth = abs(last(call) - right) / 1e-3
        assert guard._weights[call] == pytest.approx(worth, rel=0.6, abs=0.01), call


def test_a_call_is_refused_where_its_error_is_more_than_its_share() -> None:
    _scheduler, known = _schedule(*SCHEDULERS[0])
    generator = torch.Generator().manual_seed(0)
    forecast = forecast_of(known, 1)
    for call in range(4):
        forecast.observe(torch.randn(2, 3, 4, generator=generator))
        if call < 3:
            assert Guard(known, 30.0).refuses(forecast, call) is None
        if call == 2:
            forecast.predict(3)
    missed = forecast.missed()
    assert missed is not None
    harm = Guard(known, 30.0)._weights[3] * forecast.answer(missed, 3).flatten(1).square().mean(1).sqrt().amax()
    enough = 6.0 - 20 * float(torch.log10(harm * 20))  # the quality that just allows it
    assert not Guard(known, enough - 0.1).refuses(forecast, 3)
    assert Guard(known, enough + 0.1).refuses(forecast, 3)


def test_an_image_beside_the_latent_makes_no_error_smaller() -> None:
    _scheduler, known = _schedule(*SCHEDULERS[0])
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 1, 2, 4, generator=generator)
    image = torch.randn(1, 6, 4, generator=generator)
    alone, beside = forecast_of(known, 1), forecast_of(known, 1)
    for call, latent in enumerate(latents):
        alone.observe(latent)
        beside.observe(torch.cat([latent, image], 1))
        if call == 2:
            alone.predict(3), beside.predict(3)
    allowed = [next(q for q in range(60, -60, -1) if not Guard(known, q).refuses(f, 3)) for f in (alone, beside)]
    assert allowed[0] == allowed[1]


def test_what_is_not_finite_is_refused() -> None:
    _scheduler, known = _schedule(*SCHEDULERS[0])
    forecast = forecast_of(known, 1)
    for _ in range(3):
        forecast.observe(torch.zeros(1, 2))
    forecast.predict(3)
    forecast.observe(torch.full((1, 2), float("nan")))
    assert Guard(known, 1.0).refuses(forecast, 3)


def test_twenty_decibels_more_are_a_tenth_of_the_error() -> None:
    assert bound_of(50.0) == pytest.approx(bound_of(30.0) / 10)
