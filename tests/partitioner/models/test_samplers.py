"""What is said of samplers holds for diffusers' schedulers."""

from __future__ import annotations

import diffusers
import pytest

from partitioner.models.samplers import SECOND_SHARES, denoiser_calls, exact_calls, finish_of, steps_of


@pytest.mark.parametrize("name", [*SECOND_SHARES, "DDIMScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("steps", [2, 20])
def test_calls_are_as_many_as_the_scheduler_has_timesteps(name: str, steps: int) -> None:
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(steps)
    assert denoiser_calls(name, steps) == len(scheduler.timesteps)
    assert steps_of(name, denoiser_calls(name, steps)) == steps


def test_look_ahead_ends_a_sampler_of_two_calls_exactly() -> None:
    assert exact_calls("HeunDiscreteScheduler", "lookahead", 4) == 4 + finish_of("HeunDiscreteScheduler") == 6
    assert exact_calls("HeunDiscreteScheduler", "async", 4) == exact_calls("DDIMScheduler", "lookahead", 4) == 4
    assert exact_calls(None, "lookahead", 4) == 4
