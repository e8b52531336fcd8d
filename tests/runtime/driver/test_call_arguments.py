"""CallReader: which calls of the denoiser an engine takes, and how it refuses the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from runtime.engine import Engine
from runtime.errors import InputError
from runtime.options import EngineOptions
from tests.support.engines import WIDTH, Trajectory, equal, toy_plan
from tests.support.toy_plans import DENOISER

pytestmark = pytest.mark.usefixtures("trace_once")


@pytest.fixture(scope="module")
def emulated() -> Iterator[Engine]:
    with Engine(DENOISER, toy_plan(DENOISER), EngineOptions(transport="emulation")) as engine:
        yield engine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, "context missing.*Make a plan for such calls: partition-model --model toy --devices 2"),
        ({"mask": torch.zeros(2)}, "cannot be called like this: .*unexpected keyword argument 'mask'"),
        ({"gain": torch.ones(2)}, "gain not in it.*partition-model"),
        ({"x": torch.zeros(5, WIDTH)}, r"x has 2 dimensions \(\[5, 8\]\), the plan has 3"),
        ({"t": torch.zeros(2)}, r"t has 1 dimensions \(\[2\]\), the plan has 0"),
        ({"gain": object()}, "gain is a object"),
        ({"x": torch.zeros(2, 5, 9)}, "does not fit this call.*Make a plan for it: partition-model --model toy"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_words(emulated: Engine, change: dict[str, Any], message: str) -> None:
    arguments = {**Trajectory().inputs(0), **change}
    with pytest.raises(InputError, match=message):
        emulated(**arguments)
    assert equal(Trajectory(calls=2).through(emulated), Trajectory(calls=2).through(DENOISER))


def test_positional_arguments_are_those_of_the_denoiser(emulated: Engine) -> None:
    inputs = Trajectory().inputs(0)
    with torch.no_grad():
        assert torch.equal(emulated(*inputs.values())[0], DENOISER(**inputs)[0])
