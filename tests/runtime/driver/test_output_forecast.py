"""OutputForecast: latents of samplers that are stepped, with denoisers whose outputs answer to them."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from runtime.driver.correction import Correction
from runtime.driver.noise_schedule import SPREAD, NoiseSchedule, noise_schedule_of
from runtime.driver.output_forecast import OutputForecast
from tests.support.schedulers import BETAS, scheduler_of

SAMPLERS = ["DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]


def _error(name: str, strength: float) -> float:
    """The error of the last latent of 20 steps in look-ahead, relative to it.

    In one direction the output answers to the latent 1 + strength times as much as the correction assumes.
    """

    def run(ahead: bool) -> torch.Tensor:
        options: dict[str, Any] = {**BETAS, "clip_sample": False} if name == "DDIMScheduler" else BETAS
        scheduler = scheduler_of(name, options, 20)
        known = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
        assert isinstance(known, NoiseSchedule)
        x, along, target = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).unbind(0)
        along, foreseen = along / along.norm(), None
        forecast = OutputForecast(known, 1)
        correction = Correction(known, forecast)
        for call, timestep in enumerate(scheduler.timesteps):
            forecast.observe(x)
            correction.observe()
            seen = x if foreseen is None else foreseen
            clean, noise = known.scale[call], known.scale[call] * known.level[call]
            off = seen - clean * target
            epsilon = 1 / (SPREAD * clean + noise) * (off + strength * (off * along).sum() * along)
            correction.see(epsilon, call)
            epsilon = correction.of(epsilon, call, foreseen is None)
            last = call + 1 == known.calls
            foreseen = forecast.predict(call + 1) if ahead and call >= 1 and not last else None
            x = scheduler.step(epsilon, timestep, x)[0]
        return x

    right = run(False)
    return float((run(True) - right).norm() / right.norm())


@pytest.mark.parametrize("strength", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_look_ahead_stays_near_whatever_outputs_answer(name: str, strength: float) -> None:
    assert _error(name, strength) < 0.02


def test_what_an_output_answers_is_learned_from_calls() -> None:
    """Guidance is in it: the slopes are read off the latents."""
    scheduler = scheduler_of("DDIMScheduler", {**BETAS, "clip_sample": False}, 20)
    known = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert isinstance(known, NoiseSchedule)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, generator=generator)
    answers = torch.diag(torch.linspace(0.2, 0.6, 16))
    forecast = OutputForecast(known, 1)
    for timestep in scheduler.timesteps[:12]:
        forecast.observe(x)
        x = scheduler.step(x @ answers + 0.05 * torch.randn(1, 16, generator=generator), timestep, x)[0]
    forecast.observe(x)
    moved = forecast._x[11] - forecast._x[10]
    told, plain = forecast._secants.times(moved, 11), known.stiffness[11] * moved
    assert float((told - moved @ answers).norm()) < float((plain - moved @ answers).norm())


def test_a_sampler_whose_first_move_is_none_is_foreseen_from_the_second_on() -> None:
    """As where image-to-image begins at a noise level that is there twice."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.8, 0.6, 0.4, 0.2])
    known = noise_schedule_of(scheduler, 800.0)
    assert isinstance(known, NoiseSchedule)
    assert known.level[0] == known.level[1]
    forecast = OutputForecast(known, 1)
    latent, slope = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    for level in known.level[:4]:
        forecast.observe(latent + level * slope)
    assert torch.allclose(forecast.predict(4), latent + known.level[4] * slope, atol=1e-5)
