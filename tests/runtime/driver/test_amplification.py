"""Amplification: what an error of one output makes of the last latent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from runtime.driver.amplification import ADDED, ALIKE, UNEQUAL, Amplification
from runtime.driver.noise_schedule import SPREAD, NoiseSchedule, noise_schedule_of
from tests.support.schedulers import BETAS, scheduler_of

SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {**BETAS, "clip_sample": False}),
    ("EulerDiscreteScheduler", BETAS),
    ("HeunDiscreteScheduler", BETAS),
    ("DPMSolverMultistepScheduler", {**BETAS, "final_sigmas_type": "zero"}),
    ("UniPCMultistepScheduler", BETAS),
    ("PNDMScheduler", {**BETAS, "skip_prk_steps": True}),
    ("FlowMatchEulerDiscreteScheduler", {}),
]


def _known(name: str, options: dict[str, Any]) -> NoiseSchedule:
    scheduler = scheduler_of(name, options, 20)
    found = noise_schedule_of(scheduler, float(scheduler.timesteps[0]))
    assert isinstance(found, NoiseSchedule)
    return found


@pytest.mark.parametrize("added", [0.0, 4.0])
@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_it_is_what_the_stepped_scheduler_makes_of_it(name: str, options: dict[str, Any], added: float) -> None:
    """Of a denoiser whose outputs answer as SPREAD says, and so much more."""
    known = _known(name, options)

    def last(changed: int | None) -> float:
        made = scheduler_of(name, options, 20)
        x = torch.full((1, 1), 0.7, dtype=torch.float64)
        x = x if known.flow else x * float(made.init_noise_sigma)
        for call, timestep in enumerate(made.timesteps):
            passed = made.scale_model_input(x, timestep) if hasattr(made, "scale_model_input") else x
            level = known.level[call]
            z = passed / known.scale[call]
            if known.flow:
                own, more = _of_flow(level)
            else:
                own, more = 1 / (SPREAD + level), UNEQUAL / (ALIKE + level)
            output = (own + added * more) * z + (1e-3 if call == changed else 0.0)
            x = made.step(output, timestep, x)[0].double()
        return float(x)

    amplification, right = Amplification(known), last(None)
    plain = amplification._table[:, ADDED.tolist().index(added)]
    for call in range(known.calls):
        worth = abs(last(call) - right) / 1e-3
        # the table is of the largest for all that is added up to this
        assert float(plain[call]) >= 0.99 * worth - 1e-3, call
        if added == 0.0:
            assert float(plain[call]) <= 1.01 * worth + 1e-3, call


def _of_flow(level: float) -> tuple[float, float]:
    """How the noise less the clean latent answers to the mix of both, by how the noise answers in z."""
    if level == 1:
        return 1 - SPREAD, 0.0  # nothing but noise; the first latent has no error
    share = level / (1 - level)
    noise, more = 1 / (SPREAD + share), UNEQUAL / (ALIKE + share)  # by z, which is the latent / (1 - level)
    clean = 1 - share * noise
    return (noise - clean) / (1 - level), more * (1 + share) / (1 - level)


def test_a_sampler_of_one_step_shrinks_errors_and_one_that_extrapolates_does_not() -> None:
    few, many = np.array([0.0]), np.array([6.0])
    euler, pndm = (Amplification(_known(*SCHEDULERS[index])) for index in (1, 5))
    assert euler.at_most(10, many)[0] < 1.0
    assert pndm.at_most(10, few)[0] < 1.0
    assert pndm.at_most(10, many)[0] > 100.0


def test_more_is_never_less_and_what_is_beyond_the_table_is_its_last() -> None:
    amplification = Amplification(_known(*SCHEDULERS[3]))
    found = amplification.at_most(5, np.array([0.0, 1.0, 5.0, 30.0, 1e6, np.inf]))
    assert (np.diff(found) >= 0).all()
    assert found[-1] == found[-2] == amplification._table[5, -1]
