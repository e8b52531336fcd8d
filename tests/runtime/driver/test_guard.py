"""Guard: which calls it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from runtime.driver.forecast import Forecast
from runtime.driver.guard import CARRIED, MARGIN, Guard, bound_of
from runtime.driver.noise_schedule import NoiseSchedule, noise_schedule_of
from runtime.driver.output_forecast import forecast_of
from runtime.driver.outputs_beside import OutputsBeside
from runtime.driver.readback import read
from runtime.driver.spent import Spent
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


def _observed(known: NoiseSchedule, latents: torch.Tensor, foreseen: int) -> Forecast:
    """A forecast that has observed latents, of which one call's was predicted by those before."""
    forecast = forecast_of(known, 1)
    for call, latent in enumerate(latents):
        if call == foreseen:
            forecast.predict(call)
        forecast.observe(latent)
    return forecast


def _guard(known: NoiseSchedule, quality: float, forecast: Forecast, generation: Spent | None = None) -> Guard:
    """One that has seen a call whose output is what the sampler moved by."""
    guard = Guard(known, quality, forecast, OutputsBeside(), generation or Spent())
    guard.observe(1.0)
    guard._mix.gain = np.ones(len(forecast.latent))
    return guard


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _nearly_straight(known: NoiseSchedule, *shape: int) -> torch.Tensor:
    """Latents of the first four calls, the last of them a little off the line."""
    noise, off = _random(2, *shape)
    latents = torch.stack([noise * known.level[call] * known.scale[call] for call in range(4)])
    latents[3] += 0.01 * off
    return latents


def test_a_call_is_refused_where_its_error_is_more_than_its_shares() -> None:
    _scheduler, known = _schedule(*SCHEDULERS[0])
    forecast = _observed(known, _nearly_straight(known, 2, 3, 4), 3)
    harm = _harm(_guard(known, 30.0, forecast), 3)
    enough = _quality(known, harm / CARRIED)  # the quality that just allows it
    assert not _guard(known, enough - 0.1, forecast).refuses(3)
    assert _guard(known, enough + 0.1, forecast).refuses(3)


def test_a_call_may_do_what_those_before_it_have_left_of_their_shares() -> None:
    _scheduler, known = _schedule(*SCHEDULERS[0])
    forecast = _observed(known, _nearly_straight(known, 2, 3, 4), 3)
    harm = _harm(_guard(known, 30.0, forecast), 3)
    guard = _guard(known, _quality(known, harm / 1.5), forecast)  # one and a half shares; four calls have four
    assert [bool(guard.refuses(3)) for _ in range(4)] == [False, False, True, True]
    assert not guard.refuses(4)


def test_what_a_generation_has_passed_on_is_no_longer_to_be_shared_out() -> None:
    _scheduler, known = _schedule(*SCHEDULERS[0])
    forecast, generation = _observed(known, _nearly_straight(known, 2, 3, 4), 3), Spent()
    harm = _harm(_guard(known, 30.0, forecast), 3)
    quality = _quality(known, harm / 2)  # half of what the call does is its share
    assert not _guard(known, quality, forecast, generation).refuses(3)
    assert generation.most == pytest.approx(harm, rel=1e-3)
    passed = [not _guard(known, quality, forecast, generation).refuses(3) for _ in range(10)]
    assert passed == [True] * sum(passed) + [False] * (10 - sum(passed)) != [True] * 10
    assert generation.most <= bound_of(quality)


def test_what_was_passed_on_is_reckoned_anew_where_guidance_rises() -> None:
    """By a sampler that extrapolates, what a call did at a scale of 1 is worth much more at one of 12."""
    _scheduler, known = _schedule("DPMSolverMultistepScheduler", BETAS)
    forecast, generation = _observed(known, _nearly_straight(known, 2, 3, 4), 3), Spent()
    guard = _guard(known, _quality(known, _harm(_guard(known, 30.0, forecast), 3)), forecast, generation)
    assert not guard.refuses(3)
    before = generation.most
    guard._mix.gain = np.full(2, 12.0)
    assert guard.refuses(4)
    assert generation.is_too_much
    assert generation.most > 12 * before, "twelve times by the output that was made at the new scale alone"


def test_what_was_passed_on_stays_within_the_bound_where_guidance_ends() -> None:
    _scheduler, known = _schedule("DPMSolverMultistepScheduler", BETAS)
    forecast, generation = _observed(known, _nearly_straight(known, 2, 3, 4), 3), Spent()
    guard = _guard(known, -190.0, forecast, generation)
    guard._mix.gain = np.full(2, 12.0)
    assert not guard.refuses(3)
    before = generation.most
    guard._mix.gain = np.ones(2)
    assert not guard.refuses(4)
    assert not generation.is_too_much
    assert generation.most > before


def _quality(known: NoiseSchedule, share: float) -> float:
    """That gives each call such a share."""
    return MARGIN - 20 * math.log10(share * known.calls)


def _harm(guard: Guard, call: int) -> float:
    """By the smallest quality that refuses the call, which CARRIED calls at least came before."""
    low, high = -200.0, 200.0
    while high - low > 1e-3:
        quality = (low + high) / 2
        guard._share = bound_of(quality) / guard._noise_schedule.calls
        guard._errors = np.zeros_like(guard._errors)
        low, high = (low, quality) if guard.refuses(call) else (quality, high)
    return CARRIED * guard._share


def test_what_was_not_predicted_is_not_refused() -> None:
    _scheduler, known = _schedule(*SCHEDULERS[0])
    assert _guard(known, 100.0, _observed(known, _random(4, 2, 3, 4), -1)).refuses(3) is None


def test_an_error_counts_for_more_under_guidance_with_a_sampler_that_extrapolates() -> None:
    _scheduler, known = _schedule("DPMSolverMultistepScheduler", BETAS)
    forecast = _observed(known, _nearly_straight(known, 2, 3, 4), 3)
    plain, guided = _guard(known, 30.0, forecast), _guard(known, 30.0, forecast)
    guided._mix.gain = np.array([7.5, 7.5])
    assert _harm(guided, 3) > 5 * _harm(plain, 3)


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_guidance_is_seen_in_the_outputs(kind: str, scale: float) -> None:
    """The rows without the prompt come first, as in pipelines."""
    options = {**BETAS, "clip_sample": False, "prediction_type": kind}
    scheduler, known = _schedule(*(SCHEDULERS[2] if kind == "flow" else ("DDIMScheduler", options)))
    forecast, generator = forecast_of(known, 1), torch.Generator().manual_seed(0)
    guard, latent = Guard(known, 30.0, forecast, OutputsBeside(), Spent()), torch.randn(2, 4, 4, generator=generator)
    for call, timestep in enumerate(scheduler.timesteps[:4]):
        forecast.observe(torch.cat([latent, latent]))
        if call:
            guard.observe(1.0)
        output = torch.randn(4, 4, 4, generator=generator) + torch.cat([latent, latent])
        guard.show(output, call)
        without, having = output.chunk(2)
        latent = scheduler.step(without + scale * (having - without), timestep, latent)[0]
    np.testing.assert_allclose(_gain(guard), [scale] * 4, rtol=1e-3)


def _gain(guard: Guard) -> np.ndarray[Any, Any]:
    """As it is when what outputs have shown has been read."""
    while guard._unread:
        guard._mix.take(*read(guard._unread.pop(0)))
    assert guard._mix.gain is not None
    return guard._mix.gain


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("scale", [3.0, 7.5])
def test_guidance_is_seen_in_the_outputs_of_calls_of_their_own(scale: float, ends: bool) -> None:
    """ends: guidance is switched off at call 4, so that only one of the two goes on."""
    scheduler, known = _schedule(*SCHEDULERS[0])
    forecasts, beside = [forecast_of(known, 1), forecast_of(known, 1)], OutputsBeside()
    guards = [Guard(known, 30.0, forecast, beside, Spent()) for forecast in forecasts]
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 4, 4, generator=generator)
    for call, timestep in enumerate(scheduler.timesteps[:6]):
        outputs = torch.randn(2, 2, 4, 4, generator=generator) + latent
        called = guards[1:] if ends and call > 3 else guards
        for guard in called:
            guard._forecast.observe(latent)
            if call:
                guard.observe(1.0)
            guard.show(outputs[guards.index(guard)], call)
        without, having = outputs
        mixed = having if len(called) == 1 else without + scale * (having - without)
        latent = scheduler.step(mixed, timestep, latent)[0]
        for guard in called[: 2 if call > 1 else 0]:
            expected = 1.0 if len(called) == 1 and call > 4 else scale
            np.testing.assert_allclose(_gain(guard)[:2], [expected] * 2, rtol=1e-3)


def test_an_image_beside_the_latent_makes_no_error_smaller() -> None:
    _scheduler, known = _schedule(*SCHEDULERS[0])
    latents, image = _nearly_straight(known, 1, 2, 4), torch.ones(4, 1, 6, 4)
    alone, beside = (_observed(known, some, 3) for some in (latents, torch.cat([latents, image], 2)))
    assert _harm(_guard(known, 30.0, alone), 3) == pytest.approx(_harm(_guard(known, 30.0, beside), 3))


def test_an_error_of_a_whole_move_is_refused_whatever_it_is_worth() -> None:
    _scheduler, known = _schedule(*SCHEDULERS[0])
    assert not _guard(known, -190.0, _observed(known, _nearly_straight(known, 2, 3, 4), 3)).refuses(3)
    assert _guard(known, -190.0, _observed(known, _random(4, 2, 3, 4), 3)).refuses(3)


def test_an_error_that_a_multistep_sampler_makes_worth_more_than_the_call_is_refused() -> None:
    """By PNDM's weights an error of one output is worth several moves, by those of the others one at most."""
    assert _refused_at(18, "PNDMScheduler", {**BETAS, "skip_prk_steps": True})
    assert not _refused_at(17, "DPMSolverMultistepScheduler", BETAS)
    assert not _refused_at(17, *SCHEDULERS[0])


def _refused_at(call: int, name: str, options: dict[str, Any]) -> bool | None:
    """Whether a call is, whose latent was foreseen one call before, where outputs change a little, by chance."""
    scheduler, known = _schedule(name, options)
    changes = 0.005 * _random(known.calls, 2, 3, 8, 8)
    outputs = _random(2, 3, 8, 8) + changes.cumsum(0)
    latent, forecast = _random(2, 3, 8, 8) * known.level[0] * known.scale[0], forecast_of(known, 1)
    for at, timestep in enumerate(scheduler.timesteps[: call + 1]):
        if at:
            forecast.predict(at)
        forecast.observe(latent)
        latent = scheduler.step(outputs[at], timestep, latent)[0]
    return _guard(known, 26.0, forecast).refuses(call)


def test_what_is_not_finite_is_refused() -> None:
    _scheduler, known = _schedule(*SCHEDULERS[0])
    latents = torch.zeros(4, 1, 2)
    latents[3] = float("nan")
    assert _guard(known, 1.0, _observed(known, latents, 3)).refuses(3)


def test_twenty_decibels_more_are_a_tenth_of_the_error() -> None:
    assert bound_of(50.0) == pytest.approx(bound_of(30.0) / 10)
