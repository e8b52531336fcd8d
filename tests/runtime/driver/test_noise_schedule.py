"""NoiseSchedule: what is read from schedulers of diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runtime.driver.noise_schedule import noise_schedule_of
from tests.support.schedulers import BETAS, DETERMINISTIC, scheduler_of

STOCHASTIC: dict[str, Any] = {
    "EulerAncestralDiscreteScheduler": BETAS,
    "DDPMScheduler": BETAS,
    "LCMScheduler": BETAS,
    "KDPM2AncestralDiscreteScheduler": BETAS,
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samplers_that_add_noise_have_no_noise_schedule(name: str) -> None:
    scheduler = scheduler_of(name, STOCHASTIC[name], 10)
    assert noise_schedule_of(scheduler, float(scheduler.timesteps[0])) is None


def test_sde_solver_has_no_noise_schedule() -> None:
    scheduler = scheduler_of("DPMSolverMultistepScheduler", {**BETAS, "algorithm_type": "sde-dpmsolver++"}, 10)
    assert noise_schedule_of(scheduler, float(scheduler.timesteps[0])) is None


def test_no_scheduler_or_foreign_timesteps_have_no_noise_schedule() -> None:
    assert noise_schedule_of(None, 10.0) is None
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 10)
    assert noise_schedule_of(scheduler, 5000.0) is None


def test_a_start_in_the_middle_is_found() -> None:
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 20)
    noise_schedule = noise_schedule_of(scheduler, float(scheduler.timesteps[12]))
    assert noise_schedule is not None
    assert noise_schedule.calls == 8
    assert noise_schedule.expects(0, float(scheduler.timesteps[12]))
    assert not noise_schedule.expects(0, float(scheduler.timesteps[11]))
    assert not noise_schedule.expects(8, 0.0)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_a_start_in_the_middle_is_at_the_first_call_of_a_step(name: str) -> None:
    """Heun's second call has the same timestep as the first one of the step after."""
    scheduler = scheduler_of(name, BETAS, 20)
    noise_schedule = noise_schedule_of(scheduler, float(scheduler.timesteps[12]))
    assert noise_schedule is not None
    assert noise_schedule.calls == len(scheduler.timesteps) - 12 == 27
    assert all(noise_schedule.expects(call, float(scheduler.timesteps[12 + call])) for call in range(27))
    assert (noise_schedule.second_share is not None, noise_schedule.finish) == (True, 2)


def test_timesteps_that_the_pipeline_divides_by_a_thousand_are_found() -> None:
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", {}, 8)
    passed = scheduler.timesteps / 1000
    noise_schedule = noise_schedule_of(scheduler, float(passed[0]))
    assert noise_schedule is not None
    later = noise_schedule.timestep(3, passed[0].to(torch.bfloat16).expand(2))
    assert later.shape == (2,)
    assert later.dtype == torch.bfloat16
    assert float(later[0]) == pytest.approx(float(passed[3]), rel=1e-2)
