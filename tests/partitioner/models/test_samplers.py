"""What is said of samplers by their names holds for diffusers' schedulers."""

from __future__ import annotations

import diffusers
import pytest

from partitioner.models.samplers import denoiser_calls, exact_calls, finish_of, refusal_of, steps_of

TWO_CALLS = ["HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "KDPM2DiscreteScheduler"]


@pytest.mark.parametrize(
    "name", [*TWO_CALLS, "KDPM2AncestralDiscreteScheduler", "DDIMScheduler", "UniPCMultistepScheduler"]
)
@pytest.mark.parametrize("steps", [2, 20])
def test_calls_are_as_many_as_the_scheduler_has_timesteps(name: str, steps: int) -> None:
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(steps)
    assert denoiser_calls(name, steps) == len(scheduler.timesteps)
    assert steps_of(name, denoiser_calls(name, steps)) == steps


def test_pndm_repeats_one_timestep_as_stable_diffusion_configures_it() -> None:
    assert denoiser_calls("PNDMScheduler", 50) == 51
    assert steps_of("PNDMScheduler", 51) == 50


@pytest.mark.parametrize("name", [None, "NoSuchScheduler", "AmusedScheduler"])
def test_a_sampler_that_cannot_be_built_is_taken_to_call_once_per_step(name: str | None) -> None:
    assert (denoiser_calls(name, 30), steps_of(name, 30), finish_of(name), refusal_of(name)) == (30, 30, 0, None)


def test_look_ahead_ends_a_sampler_of_two_calls_exactly() -> None:
    assert [finish_of(name) for name in TWO_CALLS] == [2, 2, 2]
    assert exact_calls("HeunDiscreteScheduler", "lookahead", 4) == 6
    assert exact_calls("HeunDiscreteScheduler", "async", 4) == exact_calls("DDIMScheduler", "lookahead", 4) == 4
    assert exact_calls(None, "lookahead", 4) == 4
