"""LatentsAhead: what is known of a trajectory's latents; and where nothing can be foreseen, the reason."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch

from partitioner.graph.nodes import Role
from runtime.driver.latents_ahead import LatentsAhead, foreseeable
from runtime.driver.noise_schedule import NoiseSchedule
from runtime.driver.outputs_beside import OutputsBeside
from runtime.driver.spent import Spent
from tests.support.engines import WIDTH
from tests.support.schedulers import scheduler_of
from tests.support.toy_plans import GRAPHS

STEPS = 8
CONTEXT = torch.zeros(2, 6)


def scheduler() -> Any:
    return scheduler_of("DDIMScheduler", {"clip_sample": False}, STEPS)


def known(quality: float | None = None) -> LatentsAhead:
    found = foreseeable(GRAPHS[2](), inputs(0), float(scheduler().timesteps[0]), scheduler(), guarded=False)
    assert isinstance(found, NoiseSchedule)
    return LatentsAhead(found, ["x"], 1, quality, defaultdict(OutputsBeside), defaultdict(Spent))


def inputs(call: int) -> dict[str, torch.Tensor]:
    return {"x": latents()[call], "t": scheduler().timesteps[call], "context": CONTEXT}


def latents() -> list[torch.Tensor]:
    """Of one clean latent and one noise, so that all outputs are the noise and every latent can be foreseen."""
    made, steps = scheduler(), []
    latent, noise = torch.randn(2, 2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    for timestep in made.timesteps:
        steps.append(latent)
        latent = made.step(noise, timestep, latent)[0]
    return steps


@pytest.mark.parametrize("quality", [None, 40.0])
def test_what_is_straight_is_foreseen_with_its_timestep(quality: float | None) -> None:
    ahead = known(quality)
    ahead.begin(inputs(0))
    for call in range(1, STEPS - 1):
        ahead.take(inputs(call))
        if call > 1:
            assert ahead.refuses(call) == (False, False)
        later = ahead.inputs_at(call + 1, call, GRAPHS[2](), inputs(call), ["x"])
        torch.testing.assert_close(later["x"], latents()[call + 1], rtol=0, atol=1e-4)
        assert later["t"] == scheduler().timesteps[call + 1]
        assert later["context"] is CONTEXT
    unread = ahead.inputs_at(STEPS - 1, STEPS - 2, GRAPHS[2](), inputs(STEPS - 2), [])
    assert torch.equal(unread["x"], latents()[STEPS - 2]), "no component reads it"


def test_a_latent_of_somebody_elses_making_is_refused_as_a_strangers() -> None:
    ahead = known()
    ahead.begin(inputs(0))
    for call in range(1, 6):
        ahead.take(inputs(call) | ({"x": latents()[call].flip(2)} if call == 5 else {}))
        assert ahead.refuses(call) == ((True, True) if call == 5 else (False, False))
        ahead.inputs_at(call + 1, call, GRAPHS[2](), inputs(call), ["x"])
    ahead.refresh()
    ahead.take(inputs(6))


def test_an_output_is_corrected_only_where_that_is_wanted() -> None:
    ahead = known()
    ahead.begin(inputs(0))
    noise, corrected = torch.Generator().manual_seed(1), {}
    for call in range(1, 6):
        missed = inputs(call)["x"] + 0.01 * torch.randn(2, 5, WIDTH, generator=noise)
        ahead.take(inputs(call) | {"x": missed})
        output = torch.randn(2, 5, WIDTH, generator=noise)
        (kept,) = ahead.correct([output], call, is_exact=False, is_passed_on=False)
        assert kept is output
        (corrected[call],) = ahead.correct([output], call, is_exact=False, is_passed_on=True)
        ahead.inputs_at(call + 1, call, GRAPHS[2](), inputs(call), ["x"])
    assert not torch.equal(corrected[5], output)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"role": Role.STEP}, "the pipeline may give context anew at every step"),
        ({"t": torch.tensor([875.0, 750.0])}, "calls have several timesteps at once"),
        ({"timestep": None}, "its calls have no timestep"),
        ({"scheduler": None}, "there is no scheduler with timesteps"),
        ({"clips": True}, "it clips what is large in the picture"),
    ],
)
def test_the_reason_is_given_where_nothing_can_be_foreseen(change: dict[str, Any], why: str) -> None:
    graph, made = GRAPHS[2](), scheduler_of("DDIMScheduler", {"clip_sample": "clips" in change}, STEPS)
    role = change.get("role")
    graph = replace(
        graph,
        inputs=tuple(replace(item, role=role) if role and item.name == "context" else item for item in graph.inputs),
    )
    tensors = inputs(0) | ({"t": change["t"]} if "t" in change else {})
    timestep = change.get("timestep", float(made.timesteps[0]))
    found = foreseeable(graph, tensors, timestep, change.get("scheduler", made), guarded=True)
    assert isinstance(found, str)
    assert why in found
