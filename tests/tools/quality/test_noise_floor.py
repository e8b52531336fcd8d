"""The noise floor of half precision: the sequential output in a dtype beside the one in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.loading import load_pipeline
from tests.support.pipelines import saved
from tools.pictures.similarity import psnr
from tools.quality.measured_pipeline import MeasuredPipeline
from tools.quality.noise_floor import noise_floors
from tools.quality.samplers import SamplingCase

CASE = SamplingCase("euler", 2)  # not the sampler that the pipeline came with


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("stable_diffusion", tmp_path_factory.mktemp("pipelines"))


def measured(pipe: Any, load: Callable[[torch.dtype], Any] | None) -> MeasuredPipeline:
    prompts = ["a red cat", "a blue dog"]
    return MeasuredPipeline(pipe, "mine", prompts, chunk=1, guidance=None, load=load, height=16, width=16)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> MeasuredPipeline:
    made = measured(load_pipeline(folder, torch.float32), partial(load_pipeline, folder))
    made.use(CASE)
    return made


@pytest.fixture(scope="module")
def reference(pipeline: MeasuredPipeline) -> torch.Tensor:
    return pipeline.generate(CASE.steps)


@pytest.mark.slow
def test_a_floor_is_of_the_same_prompts_seeds_and_sampler(pipeline: MeasuredPipeline, reference: torch.Tensor) -> None:
    half = pipeline.in_dtype(torch.float16)
    assert {parameter.dtype for parameter in half.pipe.unet.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in pipeline.pipe.unet.parameters()} == {torch.float32}
    half.use(CASE)
    assert half.sampler == pipeline.sampler == "EulerDiscreteScheduler"
    floors = noise_floors(pipeline, CASE, reference)
    expected = float(psnr(half.generate(CASE.steps), reference).median())
    assert floors["floor_float16_db"] == round(expected, 2)
    assert floors["floor_bfloat16_db"] is not None
    assert 20 < floors["floor_bfloat16_db"] < expected < 100


def test_a_floor_is_not_measured_of_no_samples(pipeline: MeasuredPipeline, reference: torch.Tensor) -> None:
    assert noise_floors(pipeline, CASE, reference[:0]) == {"floor_float16_db": None, "floor_bfloat16_db": None}


def test_where_a_dtype_does_not_run_it_is_said(
    pipeline: MeasuredPipeline, reference: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert noise_floors(measured(pipeline.pipe, None), CASE, reference)["floor_float16_db"] is None
    assert "no noise floor of torch.float16" in (said := capsys.readouterr().err)
    assert "mine was handed over loaded" in said


@pytest.mark.slow
def test_pictures_that_are_not_finite_have_no_floor(
    folder: Path, pipeline: MeasuredPipeline, reference: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(dtype: torch.dtype) -> Any:
        pipe = load_pipeline(folder, dtype)
        pipe.vae.decoder.conv_out.bias.data.fill_(torch.nan)
        return pipe

    assert noise_floors(measured(pipeline.pipe, broken), CASE, reference[:1])["floor_float16_db"] is None
    assert "its pictures are not finite" in capsys.readouterr().err
