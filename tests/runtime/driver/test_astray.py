"""Astray: which latents missed their predictions by too much."""

from __future__ import annotations

import pytest
import torch

from runtime.driver.astray import Astray
from runtime.driver.forecast import Forecast
from runtime.driver.noise_schedule import NoiseSchedule
from runtime.driver.output_forecast import forecast_of
from runtime.driver.timesteps import Timesteps


def _begun(levels: list[float]) -> tuple[Forecast, Astray]:
    zeros = tuple(0.0 for _ in levels)
    moves = tuple((after - before,) for before, after in zip(levels, levels[1:] + levels[-1:], strict=True))
    known = NoiseSchedule(
        Timesteps(torch.tensor(levels)), (1.0,) * len(levels), tuple(levels), zeros, moves=moves, stiffness=zeros
    )
    return forecast_of(known, 1), Astray(known)


def _observe(forecast: Forecast, astray: Astray, latent: torch.Tensor) -> None:
    forecast.observe(latent)
    if forecast.squares is not None:
        astray.show(forecast.squares)


def _predicted_once() -> tuple[Forecast, Astray]:
    """Of two rows of three, which go on to 2."""
    forecast, astray = _begun([5.0, 4.0, 3.0, 2.0, 1.0])
    for known in (5.0, 4.0, 3.0):
        _observe(forecast, astray, torch.full((2, 3), known))
        astray.look(0)
        assert not astray.is_astray, "it was not predicted"
    forecast.predict(3)
    return forecast, astray


@pytest.mark.parametrize(("value", "is_astray"), [(2.0, False), (1.3, False), (2.3, False), (2.5, True)])
def test_a_prediction_that_misses_by_nearly_the_whole_move_is_astray(value: float, is_astray: bool) -> None:
    forecast, astray = _predicted_once()
    _observe(forecast, astray, torch.full((2, 3), value))
    astray.look(0)
    assert astray.is_astray == (abs(value - 2) > 0.75 * abs(value - 3)) == is_astray


def test_a_latent_of_somebody_elses_making_is_told_from_one_that_is_hard_to_foresee() -> None:
    forecast, astray = _begun([float(9 - k) for k in range(10)])
    for call, value in enumerate((9.0, 8.0, 7.0, 6.0)):
        _observe(forecast, astray, torch.full((1, 1), value))
        if call:
            forecast.predict(call + 1)
        astray.look(0)
        assert not astray.has_jumped
    _observe(forecast, astray, torch.full((1, 1), 50.0))
    astray.look(0)
    assert astray.has_jumped
    forecast.predict(5)
    _observe(forecast, astray, torch.full((1, 1), -20.0))
    astray.look(0)
    assert astray.is_astray
    assert not astray.has_jumped


def test_what_is_looked_at_later_is_of_the_call_before() -> None:
    forecast, astray = _predicted_once()
    _observe(forecast, astray, torch.full((2, 3), 50.0))
    astray.look(1)
    assert not astray.is_astray
    forecast.predict(4)
    _observe(forecast, astray, torch.full((2, 3), 97.0))
    astray.look(1)
    assert astray.is_astray


def test_what_was_shown_before_predictions_were_made_anew_refuses_no_call() -> None:
    forecast, astray = _predicted_once()
    _observe(forecast, astray, torch.full((2, 3), 50.0))
    astray.begin_anew()
    astray.look(0)
    assert not astray.is_astray
