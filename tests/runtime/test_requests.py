"""Several requests at once, with real pipelines: each gives what it gives alone, and says what it did not win."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from partitioner.models.find_spec import live_spec
from partitioner.plan.plan import Plan
from runtime import parallelize
from tests.support import pipelines
from tests.support.engines import equal
from tests.support.plans import plan_simply

pytestmark = [pytest.mark.usefixtures("trace_once"), pytest.mark.slow]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pipelines.load(pipelines.saved("stable_diffusion", tmp_path_factory.mktemp("requests")))


@pytest.fixture(scope="module", params=["async", "lookahead"])
def plan(request: pytest.FixtureRequest, pipe: Any) -> Plan:
    spec = live_spec(pipe.unet, pipe, height=32, width=32)
    return plan_simply(spec, 2, branches=1, mode=request.param, warmup=2).plan


def of_its_parts(pipe: Any, kind: str, **changes: Any) -> Any:
    """Another pipeline of the same parts, with a scheduler and a tokenizer of its own, which threads cannot share."""
    import diffusers

    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    parts = {**pipe.components, "scheduler": scheduler, "tokenizer": copy.deepcopy(pipe.tokenizer), **changes}
    made = getattr(diffusers, kind)(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("transport", ["emulation", pytest.param("processes", marks=pytest.mark.processes)])
def test_requests_in_threads_equal_themselves_alone(pipe: Any, plan: Plan, transport: str) -> None:
    with parallelize(pipe, plan, transport="emulation") as engine:
        alone = [pipelines.call(pipe, steps=8, seed=seed) for seed in range(3)]
        reasons = engine.stats.exact_reasons
    with parallelize(pipe, plan, transport=transport) as engine, ThreadPoolExecutor(2) as pool:
        own = [of_its_parts(pipe, "StableDiffusionPipeline") for _ in alone]
        made = list(pool.map(lambda seed: pipelines.call(own[seed], steps=8, seed=seed), range(3)))
        assert engine.stats.steps == 3 * 8
        assert engine.stats.exact_reasons == reasons
    assert equal(made, alone)


def test_another_pipeline_of_the_parts_counts_by_its_own_scheduler(pipe: Any, plan: Plan) -> None:
    import diffusers

    scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    other = of_its_parts(pipe, "StableDiffusionImg2ImgPipeline", scheduler=scheduler)
    options = {"image": torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32), "strength": 0.6, "steps": 10}
    with parallelize(other, plan, transport="emulation") as engine:
        alone = pipelines.call(other, **options)
        mode = engine.stats.mode
        assert mode != "exact"
    with parallelize(pipe, plan, transport="emulation") as engine:
        pipelines.call(pipe, steps=7)
        assert torch.equal(pipelines.call(other, **options), alone)
        assert engine.stats.mode == mode


def test_three_rows_leave_the_second_branch_idle_and_it_is_said(pipe: Any, caplog: Any) -> None:
    """InstructPix2Pix: with the text, with the image, with neither."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**{**pipe.unet.config, "in_channels": 8}).eval()
    other = of_its_parts(pipe, "StableDiffusionInstructPix2PixPipeline", unet=unet)
    spec = live_spec(unet, other, height=32, width=32)
    plan = plan_simply(spec, 2, branches=2, mode="async", warmup=2).plan
    options = {"image": torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32), "steps": 4, "image_guidance_scale": 1.5}
    own = pipelines.call(other, **options)
    with parallelize(other, plan, transport="emulation") as engine:
        assert torch.equal(pipelines.call(other, **options), own)
        assert [rank.steps for rank in engine.stats.ranks] == [4, 0]
    said = [record.getMessage() for record in caplog.records if record.name == "runtime"]
    assert len(said) == 1
    assert "rank 1 did nothing in a generation: calls of 3 rows cannot be shared evenly" in said[0]
