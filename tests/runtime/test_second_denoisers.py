"""Second denoisers: their calls are counted, and told."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from runtime import parallelize
from runtime.second_denoisers import counted
from tests.support.engines import Trajectory, toy, toy_plan
from tests.support.toy_sampling import ToyScheduler


class TwoDenoisers:
    """As Wan 2.2's pipeline: the first steps are one denoiser's, the others the other one's."""

    def __init__(self) -> None:
        self.transformer, self.transformer_2 = toy(), toy()
        self.scheduler, self.vae, self.controlnet = ToyScheduler(), nn.Identity(), toy().down[0]

    def __call__(self, first: int, calls: int) -> None:
        trajectory = Trajectory(calls)
        with torch.no_grad():
            for call in range(calls):
                (self.transformer if call < first else self.transformer_2)(**trajectory.inputs(call))


def test_calls_of_a_denoiser_that_no_plan_covers_are_told(caplog: Any) -> None:
    def warnings() -> list[Any]:
        return [record for record in caplog.records if record.name == "runtime"]

    pipe = TwoDenoisers()
    plan = toy_plan(pipe.transformer)
    with parallelize(pipe, plan, transport="emulation") as engine:
        pipe(4, 4)
        assert not warnings()
        pipe(3, 7)
        pipe(3, 7)
        stats = engine.stats
        assert (stats.steps, stats.uncovered_calls) == (10, {"transformer_2": 8})
    assert len(warnings()) == 1
    assert "a second denoiser, which the plan does not cover: transformer_2 (" in caplog.text
    pipe(3, 7)
    assert not pipe.transformer_2._forward_hooks


def test_only_what_is_as_the_denoiser_is_a_second_one() -> None:
    pipe, called = TwoDenoisers(), []
    with counted(pipe, pipe.transformer, called.append):
        pipe.vae(1)
        assert not called
        pipe(1, 2)
        assert called == ["transformer_2"]
    with counted(object(), pipe.transformer, called.append):
        pass
