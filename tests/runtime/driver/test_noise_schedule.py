"""Courses of trajectories, and the correction of outputs."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from runtime.driver.correction import corrected
from runtime.driver.noise_schedule import FLOW_PRIOR, PRIOR, noise_schedule_of
from tests.support.schedulers import BETAS, DETERMINISTIC, scheduler_of

STOCHASTIC: dict[str, Any] = {
    "EulerAncestralDiscreteScheduler": BETAS,
    "DDPMScheduler": BETAS,
    "LCMScheduler": BETAS,
    "KDPM2AncestralDiscreteScheduler": BETAS,
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samplers_that_add_noise_have_no_course(name: str) -> None:
    scheduler = scheduler_of(name, STOCHASTIC[name], 10)
    assert noise_schedule_of(scheduler, float(scheduler.timesteps[0])) is None


def test_sde_solver_has_no_course() -> None:
    scheduler = scheduler_of("DPMSolverMultistepScheduler", {**BETAS, "algorithm_type": "sde-dpmsolver++"}, 10)
    assert noise_schedule_of(scheduler, float(scheduler.timesteps[0])) is None


def test_no_scheduler_or_foreign_timesteps_have_no_course() -> None:
    assert noise_schedule_of(None, 10.0) is None
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 10)
    assert noise_schedule_of(scheduler, 5000.0) is None


def test_a_start_in_the_middle_is_found() -> None:
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 20)
    course = noise_schedule_of(scheduler, float(scheduler.timesteps[12]))
    assert course is not None
    assert course.calls == 8
    assert course.expects(0, float(scheduler.timesteps[12]))
    assert not course.expects(0, float(scheduler.timesteps[11]))
    assert not course.expects(8, 0.0)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_a_start_in_the_middle_is_at_the_first_call_of_a_step(name: str) -> None:
    """Heun's second call has the same timestep as the first one of the step after."""
    scheduler = scheduler_of(name, BETAS, 20)
    course = noise_schedule_of(scheduler, float(scheduler.timesteps[12]))
    assert course is not None
    assert course.calls == len(scheduler.timesteps) - 12 == 27
    assert all(course.expects(call, float(scheduler.timesteps[12 + call])) for call in range(27))
    assert (course.second_share is not None, course.finish) == (True, 2)


def test_timesteps_that_the_pipeline_divides_by_a_thousand_are_found() -> None:
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", {}, 8)
    passed = scheduler.timesteps / 1000
    course = noise_schedule_of(scheduler, float(passed[0]))
    assert course is not None
    later = course.timestep(3, passed[0].to(torch.bfloat16).expand(2))
    assert later.shape == (2,)
    assert later.dtype == torch.bfloat16
    assert float(later[0]) == pytest.approx(float(passed[3]), rel=1e-2)


# ---- correction


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_gaussians_output_is_corrected_to_that_of_the_true_latent(kind: str) -> None:
    """The best guess of a denoiser for Gaussian data of variance PRIOR is linear in its latent."""
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    scheduler.set_timesteps(20)
    course = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert course is not None

    def denoise(x: torch.Tensor, call: int) -> torch.Tensor:
        a, noise = course.scale[call], course.scale[call] * course.level[call]
        clean = a * PRIOR * x / (a**2 * PRIOR + noise**2)
        epsilon = (x - a * clean) / noise
        return {"epsilon": epsilon, "v_prediction": a * epsilon - noise * clean, "sample": clean}[kind]

    true, foreseen = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    for call in (0, 7, 19):
        output = corrected(denoise(foreseen, call), true - foreseen, course.sensitivity[call])
        torch.testing.assert_close(output, denoise(true, call))


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_of_a_multistep_sampler_the_clean_latent_is_kept(name: str) -> None:
    scheduler = scheduler_of(name, BETAS, 20)
    course = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert course is not None
    assert course.multistep
    true, foreseen, output = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    for call in (0, 7, 19):
        noise = course.scale[call] * course.level[call]
        made = corrected(output, true - foreseen, course.sensitivity[call])
        torch.testing.assert_close(true - noise * made, foreseen - noise * output)
    first_order = getattr(diffusers, name)(**BETAS, solver_order=1)
    first_order.set_timesteps(20)
    plain = noise_schedule_of(first_order, float(first_order.timesteps[0]))
    assert plain is not None
    assert not plain.multistep


def test_a_flows_output_is_corrected_too() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    course = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert course is not None
    for call in (1, 5, 9):
        sigma = course.level[call]
        spread = (1 - sigma) ** 2 * FLOW_PRIOR + sigma**2
        assert course.sensitivity[call] == pytest.approx((sigma - (1 - sigma) * FLOW_PRIOR) / spread)


def test_an_output_of_unknown_meaning_is_left() -> None:
    scheduler = diffusers.DDIMScheduler()
    scheduler.register_to_config(prediction_type="something")
    scheduler.set_timesteps(5)
    course = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert course is not None
    assert course.sensitivity == (0.0,) * 5


def test_channels_that_an_output_and_a_latent_do_not_share_are_left() -> None:
    output, missed = torch.zeros(2, 8, 3, 3), torch.ones(2, 4, 3, 3)
    wider = corrected(output, missed, 0.5)  # learned variances behind the output
    assert wider[:, :4].eq(0.5).all()
    assert wider[:, 4:].eq(0.0).all()
    narrower = corrected(missed, output + 1, 0.5)  # an image behind the latent
    assert narrower.eq(1.5).all()
    assert corrected(output, torch.ones(2, 5), 0.5) is output
    assert output.eq(0).all()
    assert missed.eq(1).all()
