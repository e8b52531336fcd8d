"""TwoCallForecast: a step of two calls is foreseen as the sampler will make it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from runtime.driver.noise_schedule import NoiseSchedule
from runtime.driver.output_forecast import forecast_of
from runtime.driver.timesteps import Timesteps


def two_call_latents(levels: list[float], share: float) -> list[torch.Tensor]:
    """Latents of every call of a sampler of two calls, of a denoiser whose output is 3 - s/2 at level s."""
    z, passed = torch.tensor([[5.0]]), []
    for call in range(0, len(levels) - 2, 2):
        first, second = 3 - levels[call] / 2, 3 - levels[call + 1] / 2
        passed += [z, z + first * (levels[call + 1] - levels[call])]
        z = z + ((1 - share) * first + share * second) * (levels[call + 2] - levels[call])
    return [*passed, z]


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("reach", [1, 2, 3])
def test_a_step_of_two_calls_is_made_of_foreseen_outputs(share: float, reach: int) -> None:
    """Heun's method and the midpoint method: neither's latents are on a line, nor on a parabola."""
    steps = [14.6 * 0.7**k for k in range(9)]
    between = [b if share == 0.5 else (a * b) ** 0.5 for a, b in pairwise(steps)]
    levels = [level for pair in zip(steps, between, strict=False) for level in pair]
    latents = two_call_latents([*levels, steps[-1]], share)
    count = len(latents)
    noise_schedule = NoiseSchedule(
        Timesteps(torch.arange(count, 0, -1).float()), (1.0,) * count, (*levels, steps[-1]), (0.0,) * count,
        second_share=share, stiffness=(0.0,) * count,
    )  # fmt: skip
    forecast = forecast_of(noise_schedule, reach)
    for call in range(count - reach):
        forecast.observe(latents[call])
        if call >= 3:
            torch.testing.assert_close(forecast.predict(call + reach), latents[call + reach], atol=1e-4, rtol=1e-4)
