"""CudaDeviceStream: what waits for what on GPUs. Whole engines on a GPU are in tests/runtime/test_gpu.py."""

from __future__ import annotations

import pytest
import torch

from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import Trajectory, largest_difference, toy, toy_plan

CLOSE = 1e-4  # of values of order 1 in float32, where other kernels or another order of sums may be chosen


@pytest.mark.gpu
@pytest.mark.processes
@pytest.mark.parametrize("devices", [["cuda:0", "cuda:0"], ["cuda:0", "cpu"], ["cpu", "cuda:0"]], ids=str)
@pytest.mark.parametrize("held_on", ["cpu", "cuda:0"])
def test_a_denoiser_that_is_on_another_device_than_a_rank(held_on: str, devices: list[str]) -> None:
    """Parameters, inputs and results go wherever they must."""
    trajectory = Trajectory()
    denoiser = toy()
    plan = toy_plan(denoiser, 2)
    with Engine(denoiser, plan, EngineOptions(transport="emulation")) as engine:
        expected = trajectory.through(engine)
    denoiser.to(held_on)
    with Engine(denoiser, plan, EngineOptions(transport="threads"), devices=devices) as engine:
        outputs = trajectory.through(engine)
    assert outputs[0].device == torch.device("cpu"), "where the inputs are"
    assert largest_difference(outputs, expected) < CLOSE
    assert next(denoiser.parameters()).device == torch.device(held_on)
