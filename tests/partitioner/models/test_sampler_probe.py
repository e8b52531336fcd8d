"""probe: what the step of diffusers' schedulers, and of others, is found to do."""

from __future__ import annotations

import functools
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffusers
import numpy
import pytest
import torch

from partitioner.models.sampler_probe import probe
from tests.support.schedulers import BETAS, scheduler_of

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
DPM = "DPMSolverMultistepScheduler"
# class, configuration, what is found: (calls of 10 steps, meaning, multistep, share of the second call)
FOUND: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("DDIMScheduler", BETAS, (10, "epsilon", False, None)),
    ("DDIMScheduler", {**BETAS, "prediction_type": "v_prediction"}, (10, "v_prediction", False, None)),
    ("DDIMScheduler", {**BETAS, "prediction_type": "sample"}, (10, "sample", False, None)),
    ("EulerDiscreteScheduler", BETAS, (10, "epsilon", False, None)),
    ("HeunDiscreteScheduler", BETAS, (19, "epsilon", False, 0.5)),
    ("KDPM2DiscreteScheduler", BETAS, (19, "epsilon", False, 1.0)),
    (DPM, BETAS, (10, "epsilon", True, None)),
    (DPM, {**BETAS, "solver_order": 1}, (10, "epsilon", False, None)),
    (DPM, {**BETAS, "prediction_type": "v_prediction"}, (10, "v_prediction", True, None)),
    (DPM, FLOW, (10, "flow", True, None)),
    ("UniPCMultistepScheduler", BETAS, (10, "epsilon", True, None)),
    ("DEISMultistepScheduler", BETAS, (10, "epsilon", True, None)),
    ("PNDMScheduler", {**BETAS, "skip_prk_steps": True}, (11, "epsilon", True, None)),
    ("FlowMatchEulerDiscreteScheduler", {}, (10, "flow", False, None)),
    ("FlowMatchHeunDiscreteScheduler", {}, (19, "flow", False, 0.5)),
]


@pytest.mark.parametrize(("name", "config", "found"), FOUND)
def test_what_a_sampler_does_is_found(name: str, config: dict[str, Any], found: tuple[Any, ...]) -> None:
    sampler = probe(scheduler_of(name, config, 10))
    assert (sampler.calls, sampler.meaning, sampler.multistep, sampler.second_share) == found
    assert sampler.refusal is None
    assert len(sampler.level) == sampler.calls
    assert (sampler.gain > 2) == sampler.multistep


NOISY = ["EulerAncestralDiscreteScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler", "SASolverScheduler"]


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_noticed(name: str) -> None:
    assert probe(scheduler_of(name, BETAS, 10)).noise


def test_noise_is_noticed_where_only_the_configuration_asks_for_it() -> None:
    assert probe(scheduler_of(DPM, {**BETAS, "algorithm_type": "sde-dpmsolver++"}, 10)).noise


def test_a_step_that_its_owner_has_wrapped_is_tried_anew_and_steps_nothing_of_the_owners() -> None:
    scheduler = scheduler_of("EulerDiscreteScheduler", BETAS, 10)
    assert not probe(scheduler).noise
    inner = scheduler.step
    seen: list[torch.Tensor] = []

    def noisy(*args: Any, **kwargs: Any) -> Any:
        latent, *others = inner(*args, **kwargs)
        seen.append(latent)
        return (latent + torch.randn_like(latent), *others)

    scheduler.step = noisy
    before = dict(vars(scheduler))
    assert probe(scheduler).noise
    assert vars(scheduler) == before
    assert scheduler.step_index is None
    assert not seen


@pytest.mark.parametrize(
    ("name", "options", "clips"),
    [
        ("DDIMScheduler", {"clip_sample": True}, True),
        ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 3.0}, True),
        ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 10.0}, False),
        ("DDIMScheduler", {"clip_sample": False, "thresholding": True}, True),
        (DPM, {"thresholding": True, "sample_max_value": 1.5}, True),
        ("HeunDiscreteScheduler", {"clip_sample": True}, True),
        ("CogVideoXDDIMScheduler", {"clip_sample": True}, False),  # its step does not ask
    ],
)
def test_a_sampler_that_clips_is_told_by_what_it_makes_of_large_latents(
    name: str, options: dict[str, Any], clips: bool
) -> None:
    assert probe(scheduler_of(name, {**BETAS, **options}, 14)).clips == clips


@pytest.mark.parametrize("table", ["alphas_cumprod", "final_alpha_cumprod"])
def test_tables_of_noise_levels_that_were_changed_by_hand_count(table: str) -> None:
    scheduler = scheduler_of("DDIMScheduler", {**BETAS, "clip_sample": False}, 10)
    before = probe(scheduler)
    setattr(scheduler, table, 0.9 * getattr(scheduler, table))
    after = probe(scheduler)
    assert (before.level, before.moves) != (after.level, after.moves)


def test_nothing_of_the_user_is_touched() -> None:
    scheduler = scheduler_of("EulerAncestralDiscreteScheduler", BETAS, 11)
    before = {name: value for name, value in vars(scheduler).items() if not isinstance(value, torch.Tensor)}
    states = torch.get_rng_state(), numpy.random.get_state()[2], random.getstate()
    probe(scheduler)
    assert {name: value for name, value in vars(scheduler).items() if not isinstance(value, torch.Tensor)} == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (numpy.random.get_state()[2], random.getstate()) == states[1:]


def test_what_another_thread_draws_meanwhile_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawn:  # a class is nobody's copy
        numbers = torch.empty(0)

    inner = diffusers.EulerDiscreteScheduler.step

    @functools.wraps(inner)
    def step(*args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            Drawn.numbers = pool.submit(torch.rand, 8).result()
        return inner(*args, **kwargs)

    monkeypatch.setattr(diffusers.EulerDiscreteScheduler, "step", step)
    assert probe(scheduler_of("EulerDiscreteScheduler", BETAS, 13)).refusal is None
    assert len(Drawn.numbers) == 8
    assert not torch.equal(torch.rand(8), Drawn.numbers)


@pytest.mark.parametrize("name", ["PNDMScheduler", DPM, "FlowMatchEulerDiscreteScheduler"])
def test_a_scheduler_that_was_stepped_before_is_tried_out_from_its_start(name: str) -> None:
    fresh, stepped = (scheduler_of(name, {}, 12) for _ in range(2))
    for timestep in stepped.timesteps[:5]:
        stepped.step(torch.zeros(1, 4, 2, 2), timestep, torch.zeros(1, 4, 2, 2))
    assert probe(stepped) == probe(fresh)
    assert probe(stepped).refusal is None


def test_of_one_that_was_stepped_before_the_true_reason_is_given() -> None:
    scheduler = scheduler_of("CMStochasticIterativeScheduler", {}, 7)
    for timestep in scheduler.timesteps:
        scheduler.step(torch.zeros(1, 4, 2, 2), timestep, torch.zeros(1, 4, 2, 2))
    assert probe(scheduler).refusal == "it adds noise of its own in its steps"


@pytest.mark.parametrize("draw", [random.random, lambda: float(numpy.random.rand()), lambda: float(torch.rand(()))])
def test_no_random_number_is_drawn_in_place_of_the_owner(draw: Any) -> None:
    class Jittered(diffusers.DDIMScheduler):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            return (super().step(*args, **kwargs)[0] * (1 + 0.1 * draw()),)

    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    wanted = draw()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    numpy.random.set_state(states[2])
    scheduler = Jittered()
    scheduler.set_timesteps(6)
    assert probe(scheduler).refusal is not None
    assert draw() == wanted


class Renamed(diffusers.HeunDiscreteScheduler):
    """Does what Heun's does, under a name that says nothing."""


class Drifting(diffusers.DDIMScheduler):
    """Moves the latent by more than its noise levels say."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return (super().step(*args, **kwargs)[0] * 1.1,)


class Squaring(diffusers.DDIMScheduler):
    """Moves the latent by what is not linear in the output."""

    def step(self, output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().step(output + output * (1 - output) * output.abs(), *args, **kwargs)


class Asking(diffusers.DDIMScheduler):
    """Needs an argument of its own."""

    def step(self, *args: Any, strength: float, **kwargs: Any) -> Any:
        return super().step(*args, **kwargs)


def test_names_do_not_count() -> None:
    assert probe(scheduler_with(Renamed)).second_share == 0.5


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Drifting, "do not follow a line"), (Squaring, "are not linear"), (Asking, "cannot be tried out (TypeError: ")],
)
def test_what_cannot_be_predicted_is_refused_in_a_sentence(kind: Any, reason: str) -> None:
    refusal = probe(scheduler_with(kind)).refusal
    assert refusal is not None
    assert reason in refusal


def scheduler_with(kind: Any) -> Any:
    made = kind(**BETAS)
    made.set_timesteps(10)
    return made
