"""Correction of outputs: with the noise schedule's sensitivity it gives what the true latent would have given."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from runtime.driver.correction import Correction, shared_part
from runtime.driver.noise_schedule import SPREAD, NoiseSchedule, noise_schedule_of
from runtime.driver.output_forecast import forecast_of
from tests.support.schedulers import BETAS, scheduler_of


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_an_output_is_corrected_to_that_of_the_true_latent(kind: str) -> None:
    """Of a denoiser that takes SPREAD / (SPREAD + s) of a change of z for one of the clean latent."""
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(20)
    noise_schedule = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert isinstance(noise_schedule, NoiseSchedule)

    def denoise(x: torch.Tensor, call: int) -> torch.Tensor:
        a, noise = noise_schedule.scale[call], noise_schedule.scale[call] * noise_schedule.level[call]
        clean = SPREAD / (SPREAD + noise_schedule.level[call]) * x / a
        epsilon = (x - a * clean) / noise
        return {"epsilon": epsilon, "v_prediction": a * epsilon - noise * clean, "sample": clean}[kind]

    true, foreseen = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    for call in (0, 7, 19):
        output = denoise(foreseen, call) + noise_schedule.sensitivity[call] * (true - foreseen)
        torch.testing.assert_close(output, denoise(true, call))


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_of_a_multistep_sampler_the_clean_latent_is_kept(name: str) -> None:
    scheduler = scheduler_of(name, BETAS, 20)
    noise_schedule = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert isinstance(noise_schedule, NoiseSchedule)
    assert noise_schedule.multistep
    true, foreseen, output = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    for call in (0, 7, 19):
        noise = noise_schedule.scale[call] * noise_schedule.level[call]
        made = output + noise_schedule.sensitivity[call] * (true - foreseen)
        torch.testing.assert_close(true - noise * made, foreseen - noise * output)
    first_order = getattr(diffusers, name)(**BETAS, solver_order=1)
    first_order.set_timesteps(20)
    plain = noise_schedule_of(first_order, float(first_order.timesteps[0]))
    assert isinstance(plain, NoiseSchedule)
    assert plain.multistep == (name == "UniPCMultistepScheduler")  # whose corrector still reads the output before


def test_a_flows_output_is_corrected_too() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    noise_schedule = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert isinstance(noise_schedule, NoiseSchedule)
    for call in (1, 5, 9):
        sigma = noise_schedule.level[call]
        # x = (1 - sigma)·clean + sigma·noise, and of a change of x / (1 - sigma) the clean latent has the usual share
        clean = SPREAD / (SPREAD + sigma / (1 - sigma)) / (1 - sigma)
        noise = (1 - (1 - sigma) * clean) / sigma
        assert noise_schedule.sensitivity[call] == pytest.approx(noise - clean)


def test_channels_that_an_output_and_a_latent_do_not_share_are_left() -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False)
    scheduler.set_timesteps(10)
    noise_schedule = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert isinstance(noise_schedule, NoiseSchedule)
    forecast = forecast_of(noise_schedule, 1)
    correction = Correction(noise_schedule, forecast)
    for call in range(3):
        forecast.observe(torch.randn(1, 4, 3, 3))
        correction.observe()
        output = torch.randn(1, 8, 3, 3)  # learned variances behind it
        correction.see(output, call)
        made = correction.of(output, call, exact=call < 2)
        forecast.predict(call + 1)
    assert torch.equal(made[:, 4:], output[:, 4:])
    assert not torch.isclose(made[:, :4], output[:, :4]).any()
    assert shared_part(torch.zeros(2, 4, 3), torch.zeros(2, 5)) is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_outputs_that_the_pipeline_turns_round_are_corrected_the_other_way(kind: str, sign: float) -> None:
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler()
    if kind != "flow":
        scheduler = diffusers.DDIMScheduler(**BETAS, prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    noise_schedule = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert isinstance(noise_schedule, NoiseSchedule)
    latent, turn = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    forecast = forecast_of(noise_schedule, 1)
    correction = Correction(noise_schedule, forecast)
    for call, timestep in enumerate(scheduler.timesteps[:4]):
        forecast.observe(latent)
        correction.observe()
        output = sign * (0.5 * latent + 0.1 * call * turn)
        correction.see(output, call)
        made = correction.of(output, call, exact=call < 3)
        if call < 3:
            assert made is output
        else:
            assert not torch.equal(made, output)
        latent = scheduler.step(sign * output, timestep, latent)[0]
        forecast.predict(call + 1)
    assert correction._secants.sign == sign
