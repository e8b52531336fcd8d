"""Forecasts of later latents, against schedulers of diffusers that are really stepped."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from runtime.driver.noise_schedule import NoiseSchedule, noise_schedule_of
from runtime.driver.output_forecast import forecast_of
from runtime.driver.timesteps import Timesteps
from tests.support.schedulers import DETERMINISTIC, scheduler_of


def drive(scheduler: Any, target: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(latent as passed to the denoiser, timestep) of every call, for the exact denoiser of the data set {target}.

    Its ε does not change along a trajectory, so that every deterministic sampler follows a straight line.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(target.shape, generator=generator)
    flow = "FlowMatch" in type(scheduler).__name__
    x = noise.clone() if flow else noise * scheduler.init_noise_sigma
    calls = []
    for call, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        calls.append((scaled, timestep))
        if flow:
            level = float(timestep) / 1000
            output = (x - target) / level
        else:
            # not from the timestep where there are levels: those of Euler's timesteps are interpolated
            levels = getattr(scheduler, "sigmas", None)
            if call % 2 and hasattr(scheduler, "sigmas_interpol"):  # the second call of the midpoint method
                levels = scheduler.sigmas_interpol
            kept = scheduler.alphas_cumprod[timestep.long()] if levels is None else 1 / (1 + levels[call] ** 2)
            output = (scaled - kept.sqrt() * target) / (1 - kept).sqrt()
        x = scheduler.step(output, timestep, x, return_dict=False)[0]
    return calls


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("reach", [1, 3])
def test_a_straight_trajectory_is_foreseen_exactly(name: str, reach: int) -> None:
    scheduler = scheduler_of(name, DETERMINISTIC[name], 20)
    calls = drive(scheduler, torch.full((2, 4, 8, 8), 0.3))
    noise_schedule = noise_schedule_of(scheduler, float(calls[0][1]))
    assert isinstance(noise_schedule, NoiseSchedule)
    assert noise_schedule.calls == len(calls)
    forecast = forecast_of(noise_schedule, reach)
    compared = 0
    for call, (latent, timestep) in enumerate(calls):
        assert noise_schedule.timesteps.expects(call, float(timestep))
        forecast.observe(latent)
        # PNDM's first calls repeat a timestep on a latent that it has kept: no line goes through them
        if call >= (3 if name == "PNDMScheduler" else 1) and call + reach < len(calls):
            predicted = forecast.predict(call + reach)
            torch.testing.assert_close(predicted, calls[call + reach][0], atol=2e-3, rtol=2e-3)
            later = noise_schedule.timesteps.timestep(call + reach, timestep)
            assert later.dtype == timestep.dtype
            assert float(later) == float(calls[call + reach][1])
            compared += 1
    assert compared > 10


def _noise_schedule(levels: list[float], multistep: bool = False) -> NoiseSchedule:
    count = len(levels)
    return NoiseSchedule(
        Timesteps(torch.arange(count, 0, -1).float()),
        (1.0,) * count,
        tuple(levels),
        (0.0,) * count,
        multistep=multistep,
        moves=tuple((later - level,) for level, later in pairwise(levels)),
        stiffness=(0.0,) * count,
    )


def test_what_does_not_change_is_taken_to_stay() -> None:
    forecast = forecast_of(replace(_noise_schedule([4.0, 2.0, 0.5]), scale=(0.2, 0.5, 0.9)), 1)
    image = torch.randn(1, 2, 4)
    for noisy in (1.0, 0.8):
        forecast.observe(torch.cat([torch.full((1, 2, 4), noisy), image], dim=1))
    predicted = forecast.predict(2)
    assert torch.equal(predicted[:, 2:], image)
    assert not torch.equal(predicted[:, :2], torch.full((1, 2, 4), 0.8))


def test_slope_change_is_damped_per_row() -> None:
    """Row 0 moves on a parabola, so its slope's change continues; row 1 zigzags, so it does not."""
    forecast = forecast_of(_noise_schedule([float(8 - k) for k in range(9)]), 1)
    for k in range(7):
        forecast.observe(torch.tensor([[float(k * k)], [float(k % 2)]]))
    predicted = forecast.predict(7)
    assert float(predicted[0]) == pytest.approx(49.0, abs=1e-4)  # undamped: 36 + 11 + 2
    held = 0.0 + (0.0 - 1.0)  # the last move, repeated: row 1 went from 1 to 0
    assert float(predicted[1]) == pytest.approx(held, abs=1e-4)


def test_a_parabola_is_foreseen_as_the_damping_lets_it() -> None:
    forecast = forecast_of(_noise_schedule([float(20 - k) for k in range(21)]), 1)
    for k in range(10):
        forecast.observe(torch.tensor([[float(k * k)]]))
    assert float(forecast.predict(10)) == pytest.approx(
        81 + 19, abs=1e-3
    )  # slopes are 1, 3, 5, ..., 17; the next is 19


@pytest.mark.parametrize("reach", [1, 3])
def test_a_slope_that_changes_with_the_level_is_foreseen_from_three_latents_on(reach: int) -> None:
    """Levels are unevenly spaced; z is a parabola of them, so that slopes are on a line in the middle of the moves."""
    levels = [14.6 * 0.8**k for k in range(16)]
    forecast = forecast_of(_noise_schedule(levels), reach)
    for call in range(10):
        forecast.observe(torch.tensor([[levels[call] ** 2, -0.3 * levels[call] ** 2 + levels[call]]]))
        if call >= 2:
            s = levels[call + reach]
            torch.testing.assert_close(forecast.predict(call + reach), torch.tensor([[s**2, -0.3 * s**2 + s]]))


@pytest.mark.parametrize(("options", "most"), [({}, 6), ({"multistep": True}, 6), ({"second_share": 0.5}, 9)])
def test_memory_is_bounded(options: dict[str, Any], most: int) -> None:
    noise_schedule = replace(_noise_schedule([float(200 - k) for k in range(200)]), **options)
    forecast = forecast_of(noise_schedule, 3)
    for k in range(150):
        forecast.observe(torch.full((1, 2), float(k)))
        if k > 0:
            forecast.predict(k + 3)
    assert len(forecast._x) == len(forecast._z) == len(forecast._slope) == most


def test_two_calls_at_one_level_keep_the_slope() -> None:
    forecast = forecast_of(_noise_schedule([4.0, 3.0, 3.0, 2.0]), 1)
    for value in (0.0, 1.0, 1.0):
        forecast.observe(torch.tensor([[value, value + 0.5]]))
    assert torch.isfinite(forecast.predict(3)).all()


def test_what_was_foreseen_first_is_what_was_missed() -> None:
    forecast = forecast_of(_noise_schedule([4.0, 3.0, 2.0, 1.0, 0.5]), 2)
    for value in (4.0, 3.0):
        forecast.observe(torch.full((1, 1), value))
    assert forecast.missed is None
    assert forecast.predict(3).item() == pytest.approx(1.0)
    forecast.observe(torch.full((1, 1), 1.0))
    forecast.predict(3)  # anew, by what is known now; the first component has done with the earlier one
    forecast.observe(torch.full((1, 1), 1.5))
    assert forecast.missed.item() == pytest.approx(0.5)


def test_components_that_begin_anew_work_on_what_is_foreseen_now() -> None:
    forecast = forecast_of(_noise_schedule([4.0, 3.0, 2.0, 1.0, 0.5]), 2)
    for value in (4.0, 3.0):
        forecast.observe(torch.full((1, 1), value))
    forecast.predict(3)
    forecast.observe(torch.full((1, 1), 1.0))
    forecast.refresh()
    anew = forecast.predict(3).item()
    forecast.observe(torch.full((1, 1), 1.5))
    assert forecast.missed.item() == pytest.approx(1.5 - anew)


def test_doubt_is_of_each_row_and_grows_with_what_was_missed() -> None:
    forecast = forecast_of(_noise_schedule([5.0, 4.0, 3.0, 2.0, 1.0]), 1)
    for known in (5.0, 4.0, 3.0):
        forecast.observe(torch.full((2, 3), known))
    assert not forecast.doubt.any()
    forecast.predict(3)
    forecast.observe(torch.tensor([[2.0] * 3, [1.9] * 3]))
    assert forecast.doubt.shape == (2, 1, 1)
    assert float(forecast.doubt[0]) == 0.0
    assert float(forecast.doubt[1]) == pytest.approx((0.1 / 1.1) ** 2 / ((0.1 / 1.1) ** 2 + 0.01), abs=1e-4)


def test_a_surprise_is_what_was_missed_over_the_length_of_the_last_move() -> None:
    forecast = forecast_of(_noise_schedule([5.0, 4.0, 3.0, 2.0, 0.5]), 2)
    for known in (5.0, 4.0, 3.0):
        forecast.observe(torch.full((2, 3), known))
    assert forecast.errors() is None
    forecast.predict(4)  # 0.5
    forecast.observe(torch.full((2, 3), 2.0))
    last = torch.full((2, 3), 0.5)
    last[1, :2] = 1.5  # what does not miss counts for nothing, as an image beside a latent
    forecast.observe(last)
    lengths, moving = forecast.errors()
    torch.testing.assert_close(
        lengths[:, 0] / moving[:, 0].clamp_min(1).sqrt() / forecast.length, torch.tensor([0.0, 1.0 / 1.5])
    )
