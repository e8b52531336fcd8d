"""The denoiser of a pipeline: which it is, and that its stand-in looks like it; in real pipelines: test_pipeline."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runtime.denoiser import DistributedDenoiser, denoiser_name
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.options import EngineOptions
from tests.support.engines import Trajectory, equal, toy_plan
from tests.support.toy_plans import DENOISER


def test_a_pipeline_has_one_denoiser() -> None:
    assert denoiser_name(SimpleNamespace(transformer=nn.Linear(1, 1), unet=None)) == "transformer"
    with pytest.raises(InputError, match="has unet and transformer; expected a diffusers pipeline with one denoiser"):
        denoiser_name(SimpleNamespace(transformer=nn.Linear(1, 1), unet=nn.Linear(1, 1)))


def test_something_without_a_denoiser_is_refused() -> None:
    class Empty:
        vae = nn.Linear(1, 1)

    with pytest.raises(InputError, match="a Empty has neither; expected a diffusers pipeline with one denoiser"):
        denoiser_name(Empty())


def test_the_stand_in_gives_the_denoisers_output_and_attributes() -> None:
    with Engine(DENOISER, toy_plan(DENOISER), EngineOptions(transport="emulation", exact=True)) as engine:
        standing_in = DistributedDenoiser(DENOISER, engine)
        trajectory = Trajectory(calls=3)
        assert equal(trajectory.through(standing_in), trajectory.through(DENOISER))
        with standing_in.cache_context("cond"):
            assert equal(trajectory.through(standing_in), trajectory.through(DENOISER))
        assert standing_in.down is DENOISER.down
        assert list(standing_in.parameters()) == []
        with pytest.raises(InputError, match="already inside a parallelize block"):
            denoiser_name(SimpleNamespace(unet=standing_in))
    assert torch.is_grad_enabled()
