"""What is said of samplers by their names holds for diffusers' schedulers."""

from __future__ import annotations

import diffusers
import pytest

from partitioner.models.samplers import (
    config_text,
    denoiser_calls,
    exact_calls,
    finish_of,
    refusal_of,
    sampler_of,
    steps_of,
)

TWO_CALLS = ["HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "KDPM2DiscreteScheduler"]


SLOWLY_BUILT = ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]  # a second, whatever the steps


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *((name, steps) for steps in (2, 20) for name in ("DDIMScheduler", "UniPCMultistepScheduler", *TWO_CALLS[:2])),
        *((name, 20) for name in SLOWLY_BUILT),
    ],
)
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


def test_a_sampler_does_what_its_configuration_says() -> None:
    configured = diffusers.DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False)
    found = sampler_of("DDIMScheduler", 10, config_text(configured.config))
    usual = sampler_of("DDIMScheduler", 10)
    assert found is not None
    assert usual is not None
    assert (found.meaning, usual.meaning) == ("v_prediction", "epsilon")
    assert found.noisy != usual.noisy, "other timesteps"
    clipping = config_text(diffusers.DDPMScheduler(variance_type="fixed_small").config)
    assert refusal_of("DDPMScheduler", clipping) is not None
    pndm = config_text(diffusers.PNDMScheduler(skip_prk_steps=False).config)
    assert (denoiser_calls("PNDMScheduler", 10), denoiser_calls("PNDMScheduler", 10, pndm)) == (11, 19)


def test_a_flow_whose_shift_follows_from_the_size_is_tried_with_its_largest() -> None:
    config = config_text(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config)
    found, usual = (sampler_of("FlowMatchEulerDiscreteScheduler", 10, text) for text in (config, ""))
    assert found is not None
    assert usual is not None
    assert (found.meaning, found.noisy == usual.noisy) == ("flow", False)


@pytest.mark.parametrize("config", [{"num_train_timesteps": 10**12}, {"beta_schedule": "none of them"}])
def test_a_configuration_that_cannot_be_built_counts_as_the_usual_one(config: dict[str, object]) -> None:
    assert sampler_of("DDIMScheduler", 10, config_text(config)) == sampler_of("DDIMScheduler", 10)
