"""NoiseSchedule: what is known of the calls of schedulers of diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runtime.driver.noise_schedule import NoiseSchedule, noise_schedule_of
from tests.support.schedulers import BETAS, DETERMINISTIC, scheduler_of

STOCHASTIC: dict[str, Any] = {
    "EulerAncestralDiscreteScheduler": BETAS,
    "DDPMScheduler": BETAS,
    "LCMScheduler": BETAS,
    "KDPM2AncestralDiscreteScheduler": BETAS,
    "SASolverScheduler": BETAS,
    "DPMSolverMultistepScheduler": {**BETAS, "algorithm_type": "sde-dpmsolver++"},
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samplers_that_add_noise_have_no_noise_schedule(name: str) -> None:
    scheduler = scheduler_of(name, STOCHASTIC[name], 10)
    reason = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert reason == f"of the sampler ({name}) later latents cannot be predicted: it adds noise of its own in its steps"


def test_no_scheduler_or_foreign_timesteps_have_no_noise_schedule() -> None:
    assert noise_schedule_of(None, 10.0) == "there is no scheduler with timesteps"
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 10)
    assert noise_schedule_of(scheduler, 5000.0) == "timestep 5000 is none of the scheduler's"


@pytest.mark.parametrize(("name", "calls"), [("DDIMScheduler", 20), ("EulerDiscreteScheduler", 20)])
def test_levels_are_those_that_the_scheduler_states(name: str, calls: int) -> None:
    scheduler = scheduler_of(name, DETERMINISTIC[name], calls)
    found = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert isinstance(found, NoiseSchedule)
    kept = scheduler.alphas_cumprod.double()[scheduler.timesteps.long()]
    level = ((1 - kept) / kept).sqrt() if name == "DDIMScheduler" else scheduler.sigmas[:-1].double()
    torch.testing.assert_close(torch.tensor(found.level).double(), level, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(found.scale).double(), (1 + level**2).rsqrt(), rtol=1e-4, atol=1e-5)


def test_a_start_in_the_middle_is_found() -> None:
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 20)
    whole = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    found = noise_schedule_of(scheduler, float(scheduler.timesteps[12]))
    assert isinstance(whole, NoiseSchedule)
    assert isinstance(found, NoiseSchedule)
    assert found.calls == found.timesteps.calls == 8
    assert found.timesteps.expects(0, float(scheduler.timesteps[12]))
    later = whole.after(12)
    assert (later.level, later.scale, later.sensitivity) == (found.level, found.scale, found.sensitivity)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_a_start_in_the_middle_is_at_the_first_call_of_a_step(name: str) -> None:
    """Heun's second call has the same timestep as the first one of the step after."""
    scheduler = scheduler_of(name, BETAS, 20)
    found = noise_schedule_of(scheduler, float(scheduler.timesteps[12]))
    assert isinstance(found, NoiseSchedule)
    assert found.calls == len(scheduler.timesteps) - 12 == 27
    assert all(found.timesteps.expects(call, float(scheduler.timesteps[12 + call])) for call in range(27))
    assert (found.second_share is not None, found.finish) == (True, 2)


def test_a_sampler_that_clips_is_not_looked_ahead_of_under_a_guard() -> None:
    scheduler = scheduler_of("DDIMScheduler", {**DETERMINISTIC["DDIMScheduler"], "thresholding": True}, 20)
    found = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert isinstance(found, str)
    assert found.startswith("of the sampler (DDIMScheduler) later latents cannot be predicted: it clips what is large")
    assert isinstance(noise_schedule_of(scheduler, float(scheduler.timesteps[0]), guarded=False), NoiseSchedule)
