"""Timesteps: what pipelines make of the scheduler's, and where a trajectory begins in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from runtime.driver.timesteps import MADE_OF, Timesteps, timesteps_of
from tests.support.schedulers import DETERMINISTIC, scheduler_of


def test_what_does_not_go_on_is_not_expected() -> None:
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 20)
    found = timesteps_of(scheduler, float(scheduler.timesteps[12]))
    assert found is not None
    assert (found.calls, found.first) == (8, 12)
    assert found.expects(0, float(scheduler.timesteps[12]))
    assert not found.expects(0, float(scheduler.timesteps[11]))
    assert not found.expects(8, 0.0)
    assert found.after(3).expects(0, float(scheduler.timesteps[15]))
    assert timesteps_of(None, 3.0) is None


@pytest.mark.parametrize(("ratio", "offset"), [(1e-3, 0.0), (-1e-3, 1.0)])
def test_what_the_pipeline_makes_of_timesteps_is_found(ratio: float, offset: float) -> None:
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", {}, 8)
    passed = scheduler.timesteps * ratio + offset
    found = timesteps_of(scheduler, float(passed[0]))
    assert found is not None
    assert found.calls == 8
    assert all(found.expects(call, float(passed[call])) for call in range(8))
    later = found.timestep(3, passed[0].to(torch.bfloat16).expand(2))
    assert later.shape == (2,)
    assert later.dtype == torch.bfloat16
    assert float(later[0]) == pytest.approx(float(passed[3]), rel=1e-2)


@pytest.mark.parametrize(("ratio", "offset"), MADE_OF)
@pytest.mark.parametrize(
    ("name", "config", "steps"),
    [("DDIMScheduler", {"steps_offset": 1}, 200), ("FlowMatchEulerDiscreteScheduler", {"shift": 7.0}, 50)],
)
def test_timesteps_that_lie_close_are_told_apart(
    name: str, config: dict[str, Any], steps: int, ratio: float, offset: float
) -> None:
    scheduler = scheduler_of(name, config, steps)
    passed = (scheduler.timesteps * ratio + offset).tolist()
    for place in range(0, steps - 3, 3):  # the last ones may be the first ones over 1000
        found = timesteps_of(scheduler, passed[place])
        assert found is not None
        assert found.first == place


def test_where_half_precision_makes_timesteps_one_the_scheduler_says_which() -> None:
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", {"shift": 7.0}, 50)
    passed = scheduler.timesteps.bfloat16().float().tolist()
    assert passed[1:3] == [996.0, 996.0]
    for place in (1, 2):
        scheduler.set_begin_index(place)  # as pipelines do that begin in the middle
        found = timesteps_of(scheduler, passed[place])
        assert found is not None
        assert found.first == place
        assert all(found.expects(call, passed[place + call]) for call in range(found.calls))


MAKERS: dict[str, Callable[[torch.Tensor, torch.dtype], torch.Tensor]] = {
    "as they are": lambda values, dtype: values.to(dtype),
    "in half precision": lambda values, dtype: values.to(dtype) / 1000,
    "turned round": lambda values, dtype: 1 - values.to(dtype) / 1000,
    "rounded last": lambda values, dtype: (values / 1000).to(dtype),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MAKERS)
def test_an_argument_has_the_bits_that_the_pipeline_makes(name: str, dtype: torch.dtype) -> None:
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 50)
    passed = MAKERS[name](scheduler.timesteps, dtype)
    found = timesteps_of(scheduler, float(passed[0]))
    assert found is not None
    for call in range(12):
        found = found.shown_by(call, passed[call].expand(2))
    made = [found.after(12).timestep(call, passed[0].expand(2)) for call in range(38)]
    assert torch.equal(torch.stack(made)[:, 0], passed[12:])


def test_an_argument_has_the_form_of_the_one_before() -> None:
    found = Timesteps(torch.tensor([900, 800]))
    assert found.timestep(1, torch.tensor(900)).dtype == torch.int64
    assert found.timestep(1, torch.tensor([900, 900])).tolist() == [800, 800]
