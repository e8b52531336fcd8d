"""Pipelines that give the denoiser more than the plan knows: ControlNets, adapters, layers to skip, other frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from partitioner.models.find_spec import live_spec
from partitioner.models.spec import trace_model
from partitioner.plan.plan import Plan
from runtime import parallelize
from runtime.denoiser import denoiser_name
from tests.support import adapters, pipelines
from tests.support.engines import contiguous, plan_of

pytestmark = [pytest.mark.usefixtures("trace_once"), pytest.mark.slow]

Made = tuple[Any, dict[str, Any]]  # a pipeline and what it is called with


def plain_plan(pipe: Any, branches: int = 1, **sizes: int) -> Plan:
    """A plan of the pipeline's own calls, without what is added below."""
    spec = live_spec(getattr(pipe, denoiser_name(pipe)), pipe, height=32, width=32, **sizes)
    graph = trace_model(spec, rows=spec.step.rows // branches, denoiser=getattr(pipe, denoiser_name(pipe)))
    return plan_of(graph, contiguous(graph, 2), branches=branches, mode="async", warmup=2)


def controlnet(pipe: Any) -> Made:
    made = adapters.with_controlnets(pipe, "StableDiffusionControlNetPipeline", adapters.controlnet(pipe))
    return made, {"image": adapters.image(), "height": 32, "width": 32, "control_guidance_end": 0.5}


def two_controlnets(pipe: Any) -> Made:
    both = [adapters.controlnet(pipe, seed) for seed in (1, 2)]
    made = adapters.with_controlnets(pipe, "StableDiffusionControlNetPipeline", *both)
    images = [adapters.image(0), adapters.image(1)]
    return made, {"image": images, "controlnet_conditioning_scale": [0.7, 0.5], "height": 32, "width": 32}


def xl_controlnet(pipe: Any) -> Made:
    made = adapters.with_controlnets(pipe, "StableDiffusionXLControlNetPipeline", adapters.controlnet(pipe))
    return made, {"image": adapters.image(), "height": 32, "width": 32}


def sd3_controlnet(pipe: Any) -> Made:
    made = adapters.with_controlnets(pipe, "StableDiffusion3ControlNetPipeline", adapters.sd3_controlnet(pipe))
    given = {"control_image": adapters.image(), "height": 32, "width": 32, "max_sequence_length": 16}
    return made, given


def skipped_layers(pipe: Any) -> Made:
    return pipe, {
        "skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0,
    }  # fmt: skip


def t2i_adapter(pipe: Any) -> Made:
    return adapters.t2i_adapter_pipeline(pipe), {"image": adapters.image(), "height": 32, "width": 32}


def ip_adapter(pipe: Any) -> Made:
    """Loaded before the engine starts: the plan's own call cannot be traced any more."""
    adapters.load_ip_adapter(pipe)
    embeds = torch.randn(2, 1, adapters.IMAGE_WIDTH, generator=torch.Generator().manual_seed(3))
    masks = [torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(5))]
    return pipe, {"ip_adapter_image_embeds": [embeds], "cross_attention_kwargs": {"ip_adapter_masks": masks}}


def ip_adapter_in_its_plan(pipe: Any) -> Made:
    made, given = ip_adapter(pipe)
    return made, {**given, "plan": plain_plan(pipe)}


CASES: list[tuple[str, Callable[[Any], Made]]] = [
    ("stable_diffusion", controlnet),
    ("stable_diffusion", two_controlnets),
    ("stable_diffusion_xl", xl_controlnet),
    ("stable_diffusion_3", sd3_controlnet),
    ("stable_diffusion_3", skipped_layers),
    ("stable_diffusion", t2i_adapter),
    ("stable_diffusion", ip_adapter),
    ("stable_diffusion", ip_adapter_in_its_plan),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: pipelines.saved(name, tmp_path_factory.mktemp(name)) for name in dict(CASES)}


@pytest.mark.parametrize(("name", "change"), CASES, ids=[change.__name__ for _, change in CASES])
def test_exact_mode_is_the_unmodified_pipeline(
    name: str, change: Callable[[Any], Made], folders: dict[str, Path]
) -> None:
    pipe = pipelines.load(folders[name])
    plan = plain_plan(pipe)
    made, given = change(pipe)
    plan = given.pop("plan", plan)
    torch.manual_seed(0)  # StableDiffusion3ControlNetPipeline samples the latent of its image
    expected = pipelines.call(made, steps=4, **given)
    with parallelize(made, plan, exact=True, transport="emulation"):
        torch.manual_seed(0)
        assert torch.equal(pipelines.call(made, steps=4, **given), expected)


@pytest.mark.processes
def test_controlnets_over_processes_and_branches(folders: dict[str, Path]) -> None:
    """Two branches compute half the rows each, which rounds otherwise; residuals are split with the rows."""
    pipe = pipelines.load(folders["stable_diffusion"])
    made, given = two_controlnets(pipe)
    expected = pipelines.call(made, steps=4, **given)
    plan = plain_plan(pipe, branches=2)
    with parallelize(made, plan, transport="emulation") as engine:
        emulated = pipelines.call(made, steps=4, **given)
        assert {rank.steps for rank in engine.stats.ranks} == {4}
    with parallelize(made, plan) as engine:
        assert torch.equal(pipelines.call(made, steps=4, **given), emulated)
        assert not torch.equal(emulated, expected)
    with parallelize(made, plan, exact=True) as engine:
        assert torch.allclose(pipelines.call(made, steps=4, **given), expected, atol=1e-3)


def test_another_number_of_frames_is_another_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = pipelines.load(pipelines.saved("animatediff", tmp_path))
    capfd.readouterr()
    plan = plain_plan(pipe, 2, frames=4)
    with caplog.at_level("WARNING"):
        for frames in (2, 6):  # the prompt's rows for 2 frames of both halves are those for 4 of one
            given = {"num_frames": frames, "height": 32, "width": 32}
            expected = pipelines.call(pipe, steps=3, **given)
            with parallelize(pipe, plan, exact=True, transport="emulation") as engine:
                assert torch.allclose(pipelines.call(pipe, steps=3, **given), expected, atol=1e-3)
                assert {rank.steps for rank in engine.stats.ranks} == {3}
    said = [record.getMessage() for record in caplog.records if record.name == "runtime" or record.levelname == "ERROR"]
    assert said == []
    assert "aceback" not in capfd.readouterr().err
