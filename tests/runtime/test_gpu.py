"""The engine on CUDA devices: threads as ranks, one GPU hosting several virtual devices or each rank its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runtime.engine import Engine, EngineOptions
from runtime.pipeline import parallelize
from tests.pipelines import call, load, saved
from tests.runtime.helpers import Trajectory, equal, largest_difference, toy, toy_plan

pytestmark = pytest.mark.gpu

OPTIONS = EngineOptions(transport="threads")


def on_gpu(trajectory: Trajectory) -> Trajectory:
    trajectory.latents = [latent.cuda() for latent in trajectory.latents]
    trajectory.timesteps = [timestep.cuda() for timestep in trajectory.timesteps]
    trajectory.context = trajectory.context.cuda()
    return trajectory


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("mode", ["exact", "async"])
def test_threads_on_one_gpu_equal_emulation(mode: str, branches: int) -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2, branches=branches)
    trajectory = on_gpu(Trajectory())
    devices = ["cuda:0"] * plan.ranks
    outputs = []
    for transport in ("emulation", "threads"):
        options = EngineOptions(transport=transport, exact=mode == "exact")
        with Engine(denoiser, plan, options, devices=devices) as engine:
            outputs.append(trajectory.through(engine))
    assert outputs[0][0].is_cuda
    assert equal(*outputs)
    if mode == "exact":
        assert largest_difference(outputs[0], trajectory.through(denoiser)) < 1e-4


def test_ranks_on_gpus_of_their_own() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2)
    trajectory = on_gpu(Trajectory())
    with Engine(denoiser, plan, OPTIONS, devices=["cuda:0", "cuda:1"]) as engine:
        outputs = trajectory.through(engine)
    with Engine(denoiser, plan, OPTIONS, devices=["cuda:0", "cuda:0"]) as engine:
        assert equal(outputs, trajectory.through(engine))


def test_a_pipeline_on_a_gpu(tmp_path: Path) -> None:
    pipe = load(saved("stable_diffusion", tmp_path)).to("cuda")
    expected = call(pipe)
    with parallelize(pipe, devices=["cuda:0", "cuda:0"], exact=True) as engine:
        assert engine.plan.ranks == 2
        assert float((call(pipe) - expected).abs().max()) < 1e-3
