"""The denoisers of a pipeline, found by running it: which need plans of their own, and what is called beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitioner.models.pipeline_specs import live_specs, model_specs
from partitioner.models.spec import SteppedModule
from tests.support.small_models import small_denoiser, write_pipeline
from tests.support.undescribed_pipelines import made
from tools.support.pipelines import PIPELINES


def test_a_pipeline_with_one_denoiser_has_one_spec(tmp_path: Path) -> None:
    write_pipeline(tmp_path, "StableDiffusionPipeline", small_denoiser("sd15"))
    specs = model_specs(str(tmp_path), height=64)
    assert list(specs) == ["unet"]
    assert specs["unet"].recorded is None
    assert specs["unet"].inputs["sample"].shape[2] == 8
    assert list(model_specs("sd15")) == [""]


def test_denoisers_that_are_made_alike_share_one_and_nothing_is_run(tmp_path: Path) -> None:
    denoiser = small_denoiser("wan")
    write_pipeline(
        tmp_path, "WanPipeline", denoiser, "transformer", transformer_2=["diffusers", "WanTransformer3DModel"]
    )
    denoiser.save_config(tmp_path / "transformer_2")
    assert list(model_specs(str(tmp_path))) == ["transformer"]


def test_a_description_stands_with_a_warning_where_the_pipeline_cannot_be_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pipeline(tmp_path, "StableDiffusionPipeline", small_denoiser("sd15"), extra=["diffusers", "ControlNetModel"])
    small_denoiser("sd15").save_config(tmp_path / "extra")
    text = (tmp_path / "extra" / "config.json").read_text()
    (tmp_path / "extra" / "config.json").write_text(text.replace("UNet2DConditionModel", "ControlNetModel"))
    assert list(model_specs(str(tmp_path))) == ["unet"]
    assert "which of extra the pipeline calls at each step beside its UNet2DConditionModel is not known" in caplog.text


def test_so_it_does_where_a_part_in_memory_cannot_be_copied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = made("control_net", tmp_path)

    def refuse(*_call: object) -> None:
        raise TypeError("such weights cannot be copied")

    monkeypatch.setattr(type(pipe.controlnet), "__deepcopy__", refuse, raising=False)
    assert list(live_specs(pipe, height=32, width=32)) == ["unet"]
    assert "which of controlnet the pipeline calls at each step" in caplog.text
    assert "(such weights cannot be copied)" in caplog.text


@pytest.mark.slow
def test_a_controlnet_is_no_denoiser_and_is_said_to_be_beside_it(tmp_path: Path) -> None:
    pipe = made("control_net", tmp_path)
    parameters = sum(tensor.numel() for tensor in pipe.controlnet.parameters())
    beside = (SteppedModule("controlnet", "ControlNetModel", parameters, 4 * parameters),)
    live = live_specs(pipe, height=32, width=32)
    assert {name: spec.beside for name, spec in live.items()} == {"unet": beside}
    pipe.save_pretrained(tmp_path / "saved")
    folder = model_specs(str(tmp_path / "saved"), height=32, width=32, dtype="float32")
    assert {name: spec.beside for name, spec in folder.items()} == {"unet": beside}


@pytest.mark.slow
def test_a_prior_and_its_decoder_each_have_a_spec(tmp_path: Path) -> None:
    tiny = PIPELINES["KandinskyV22CombinedPipeline"]
    folder = tiny.save(tmp_path)
    specs = model_specs(str(folder), height=64, width=64, dtype="float32")
    live = live_specs(tiny.load(folder), height=64, width=64)
    assert list(specs) == list(live) == ["unet", "prior_prior"]
    assert [spec.scheduler for spec in specs.values()] == ["DDIMScheduler", "UnCLIPScheduler"]
    for spec, own in zip(specs.values(), live.values(), strict=True):
        assert (spec.inputs, spec.guidance_style, spec.beside) == (own.inputs, "batch", ())
