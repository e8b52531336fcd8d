"""Forecasts of later latents, against schedulers of diffusers that are really stepped."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from runtime.lookahead import PRIOR, Course, Forecast, corrected, course_of

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DETERMINISTIC: dict[str, Any] = {
    "DDIMScheduler": {**BETAS, "clip_sample": False, "set_alpha_to_one": False},
    "PNDMScheduler": {**BETAS, "skip_prk_steps": True},
    "EulerDiscreteScheduler": BETAS,
    "HeunDiscreteScheduler": BETAS,
    "DPMSolverMultistepScheduler": BETAS,
    "UniPCMultistepScheduler": BETAS,
    "FlowMatchEulerDiscreteScheduler": {},
}
STOCHASTIC: dict[str, Any] = {
    "EulerAncestralDiscreteScheduler": BETAS,
    "DDPMScheduler": BETAS,
    "LCMScheduler": BETAS,
    "KDPM2AncestralDiscreteScheduler": BETAS,
}


def scheduler_of(name: str, config: dict[str, Any], steps: int) -> Any:
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


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
            has_levels = hasattr(scheduler, "sigmas")
            kept = 1 / (1 + scheduler.sigmas[call] ** 2) if has_levels else scheduler.alphas_cumprod[timestep.long()]
            output = (scaled - kept.sqrt() * target) / (1 - kept).sqrt()
        x = scheduler.step(output, timestep, x, return_dict=False)[0]
    return calls


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("reach", [1, 3])
def test_a_straight_trajectory_is_foreseen_exactly(name: str, reach: int) -> None:
    scheduler = scheduler_of(name, DETERMINISTIC[name], 20)
    calls = drive(scheduler, torch.full((2, 4, 8, 8), 0.3))
    course = course_of(scheduler, float(calls[0][1]))
    assert course is not None
    assert course.calls == len(calls)
    forecast = Forecast(course, reach)
    compared = 0
    for call, (latent, timestep) in enumerate(calls):
        assert course.expects(call, float(timestep))
        forecast.observe(latent)
        # PNDM's first calls repeat a timestep on a latent that it has kept: no line goes through them
        if call >= (3 if name == "PNDMScheduler" else 1) and call + reach < len(calls):
            predicted = forecast.predict(call + reach)
            torch.testing.assert_close(predicted, calls[call + reach][0], atol=2e-3, rtol=2e-3)
            later = course.timestep(call + reach, timestep)
            assert later.dtype == timestep.dtype
            assert float(later) == float(calls[call + reach][1])
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samplers_that_add_noise_have_no_course(name: str) -> None:
    scheduler = scheduler_of(name, STOCHASTIC[name], 10)
    assert course_of(scheduler, float(scheduler.timesteps[0])) is None


def test_sde_solver_has_no_course() -> None:
    scheduler = scheduler_of("DPMSolverMultistepScheduler", {**BETAS, "algorithm_type": "sde-dpmsolver++"}, 10)
    assert course_of(scheduler, float(scheduler.timesteps[0])) is None


def test_no_scheduler_or_foreign_timesteps_have_no_course() -> None:
    assert course_of(None, 10.0) is None
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 10)
    assert course_of(scheduler, 5000.0) is None


def test_a_start_in_the_middle_is_found() -> None:
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 20)
    course = course_of(scheduler, float(scheduler.timesteps[12]))
    assert course is not None
    assert course.calls == 8
    assert course.expects(0, float(scheduler.timesteps[12]))
    assert not course.expects(0, float(scheduler.timesteps[11]))
    assert not course.expects(8, 0.0)


def test_timesteps_that_the_pipeline_divides_by_a_thousand_are_found() -> None:
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", {}, 8)
    passed = scheduler.timesteps / 1000
    course = course_of(scheduler, float(passed[0]))
    assert course is not None
    later = course.timestep(3, passed[0].to(torch.bfloat16).expand(2))
    assert later.shape == (2,)
    assert later.dtype == torch.bfloat16
    assert float(later[0]) == pytest.approx(float(passed[3]), rel=1e-2)


def _course(levels: list[float], multistep: bool = False) -> Course:
    count = len(levels)
    return Course(
        torch.arange(count, 0, -1).float(), 1.0, (1.0,) * count, tuple(levels), (0.0,) * count, multistep=multistep
    )


def test_what_does_not_change_is_taken_to_stay() -> None:
    forecast = Forecast(Course(torch.tensor([3.0, 2.0, 1.0]), 1.0, (0.2, 0.5, 0.9), (4.0, 2.0, 0.5), (0.0,) * 3), 1)
    image = torch.randn(1, 2, 4)
    for noisy in (1.0, 0.8):
        forecast.observe(torch.cat([torch.full((1, 2, 4), noisy), image], dim=1))
    predicted = forecast.predict(2)
    assert torch.equal(predicted[:, 2:], image)
    assert not torch.equal(predicted[:, :2], torch.full((1, 2, 4), 0.8))


def test_slope_change_is_damped_per_row() -> None:
    """Row 0 moves on a parabola, so its slope's change continues; row 1 zigzags, so it does not."""
    forecast = Forecast(_course([float(8 - k) for k in range(9)]), 1)
    for k in range(7):
        forecast.observe(torch.tensor([[float(k * k)], [float(k % 2)]]))
    predicted = forecast.predict(7)
    assert float(predicted[0]) == pytest.approx(49.0, abs=1e-4)  # undamped: 36 + 11 + 2
    held = 0.0 + (0.0 - 1.0)  # the last move, repeated: row 1 went from 1 to 0
    assert float(predicted[1]) == pytest.approx(held, abs=1e-4)


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_what_alternates_is_not_carried_on_by_a_multistep_forecast(reach: int) -> None:
    """Slopes alternate around 1; without smoothing the last one would be carried on, and its change even amplified."""
    course = _course([float(20 - k) for k in range(21)], multistep=True)
    forecast = Forecast(course, reach)
    for k in range(10):
        forecast.observe(torch.tensor([[k + 0.3 * (k % 2)]]))
        if k >= 2 and k + reach < 21:
            ahead = float(forecast.predict(k + reach))
            assert ahead == pytest.approx(k + 0.3 * (k % 2) + reach, abs=1e-5)


@pytest.mark.parametrize("multistep", [False, True])
def test_a_parabola_is_foreseen_as_far_as_the_damping_lets_it(multistep: bool) -> None:
    forecast = Forecast(_course([float(20 - k) for k in range(21)], multistep), 1)
    for k in range(10):
        forecast.observe(torch.tensor([[float(k * k)]]))
    # slopes are 1, 3, 5, ..., 17; the next is 19: the last and 2, or the mean of two, 16, and half of 1.5 times 2
    assert float(forecast.predict(10)) == pytest.approx(81 + (17.5 if multistep else 19), abs=1e-3)


@pytest.mark.parametrize("multistep", [False, True])
def test_memory_is_bounded(multistep: bool) -> None:
    forecast = Forecast(_course([float(200 - k) for k in range(200)], multistep), 3)
    for k in range(150):
        forecast.observe(torch.full((1, 2), float(k)))
        if k > 0:
            forecast.predict(k + 3)
    assert len(forecast._latents) <= 7 + multistep
    assert len(forecast._z) <= 7 + multistep


def test_two_calls_at_one_level_keep_the_slope() -> None:
    forecast = Forecast(_course([4.0, 3.0, 3.0, 2.0]), 1)
    for value in (0.0, 1.0, 1.0):
        forecast.observe(torch.tensor([[value, value + 0.5]]))
    assert torch.isfinite(forecast.predict(3)).all()


# ---- correction


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_gaussians_output_is_corrected_to_that_of_the_true_latent(kind: str) -> None:
    """The best guess of a denoiser for Gaussian data of variance PRIOR is linear in its latent."""
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    scheduler.set_timesteps(20)
    course = course_of(scheduler, float(scheduler.timesteps[0]))
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
    course = course_of(scheduler, float(scheduler.timesteps[0]))
    assert course is not None
    assert course.multistep
    true, foreseen, output = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    for call in (0, 7, 19):
        noise = course.scale[call] * course.level[call]
        made = corrected(output, true - foreseen, course.sensitivity[call])
        torch.testing.assert_close(true - noise * made, foreseen - noise * output)
    first_order = getattr(diffusers, name)(**BETAS, solver_order=1)
    first_order.set_timesteps(20)
    plain = course_of(first_order, float(first_order.timesteps[0]))
    assert plain is not None
    assert not plain.multistep


def test_a_flows_output_is_corrected_too() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    course = course_of(scheduler, float(scheduler.timesteps[0]))
    assert course is not None
    for call in (1, 5, 9):
        sigma = course.level[call]
        spread = (1 - sigma) ** 2 * PRIOR + sigma**2
        assert course.sensitivity[call] == pytest.approx((sigma - (1 - sigma) * PRIOR) / spread)


def test_an_output_of_unknown_meaning_is_left() -> None:
    scheduler = diffusers.DDIMScheduler()
    scheduler.register_to_config(prediction_type="something")
    scheduler.set_timesteps(5)
    course = course_of(scheduler, float(scheduler.timesteps[0]))
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


def test_what_was_foreseen_first_is_what_was_missed() -> None:
    forecast = Forecast(_course([4.0, 3.0, 2.0, 1.0, 0.5]), 2)
    for value in (4.0, 3.0):
        forecast.observe(torch.full((1, 1), value))
    assert forecast.missed() is None
    assert forecast.predict(3).item() == pytest.approx(1.0)
    forecast.observe(torch.full((1, 1), 1.0))
    forecast.predict(3)  # anew, by what is known now; the first component has done with the earlier one
    forecast.observe(torch.full((1, 1), 1.5))
    assert forecast.missed().item() == pytest.approx(0.5)
