"""Where a model's configuration is found: folders, hub ids, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import DDIMScheduler

from partitioner.errors import UsageError
from partitioner.models.find_spec import model_spec
from partitioner.models.samplers import config_text
from tests.support.small_models import shapes, small_denoiser, write_pipeline


def test_a_pipeline_folder_gives_the_denoiser_and_the_vae_factor(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-pipeline"
    write_pipeline(folder, "StableDiffusionPipeline", small_denoiser("sd15"), vae=["diffusers", "AutoencoderKL"])
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8, 8]}))
    spec = model_spec(str(folder))
    assert (spec.name, spec.class_name) == ("tiny-pipeline", "UNet2DConditionModel")
    assert shapes(folder)["sample"] == (2, 4, 16, 16)
    assert shapes(folder, height=20, width=40)["sample"] == (2, 4, 10, 20)


def test_a_folder_gives_its_schedulers_configuration(tmp_path: Path) -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    write_pipeline(
        tmp_path, "StableDiffusionPipeline", small_denoiser("sd15"), scheduler=["diffusers", "DDIMScheduler"]
    )
    scheduler.save_pretrained(tmp_path / "scheduler")
    spec = model_spec(str(tmp_path))
    assert (spec.scheduler, spec.scheduler_config) == ("DDIMScheduler", config_text(scheduler.config))
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    assert model_spec(str(tmp_path)).scheduler_config == ""


def test_folders_that_hold_no_known_denoiser_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither a model_index\.json.*nor a config\.json"):
        model_spec(str(tmp_path))
    (tmp_path / "modular_model_index.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds a modular pipeline.*runtime\.parallelize\(pipe, devices=N\)"):
        model_spec(str(tmp_path))
    config = tmp_path / "config.json"
    for text, message in (
        ("{x}", "is not JSON"),
        ("[]", "holds a list; expected an object"),
        ("{}", "names no _class_name"),
        ('{"_class_name": "NoSuchModel"}', r"diffusers [\d.]+ has no model class NoSuchModel"),
        ('{"_class_name": "DDIMScheduler"}', "has no model class DDIMScheduler"),
        ('{"_class_name": "AutoencoderKL"}', r'arguments are not known.*@register_model\("AutoencoderKL"\)'),
    ):
        config.write_text(text)
        with pytest.raises(UsageError, match=message):
            model_spec(str(tmp_path))
    config.unlink()
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "ShapEPipeline", "prior": ["diffusers", "PriorTransformer"]}'
    )
    with pytest.raises(UsageError, match="is a ShapEPipeline without a unet/config"):
        model_spec(str(tmp_path))


def test_a_hub_id_without_a_network_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"no folder nobody/nothing.*Check the id and the network"):
        model_spec("nobody/nothing")


def test_a_hub_id_in_the_local_cache_gives_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    write_pipeline(snapshot, "StableDiffusionPipeline", small_denoiser("sd15"))
    references = tmp_path / "models--owner--tiny" / "refs"
    references.mkdir()
    (references / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    spec = model_spec("owner/tiny")
    assert (spec.name, spec.revision) == ("owner/tiny", commit)
