"""load_pipeline: a folder, with what its index says is missing left out; a variant of its weights; a single file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from runtime.loading import load_pipeline
from tests.support import pipelines
from tests.support.single_file import same_state, save_single_file


def test_an_index_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        load_pipeline(tmp_path, torch.float32)


def test_parts_that_are_missing_are_passed_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: dict[str, Any] = {}
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda _folder, **given: passed.update(given))
    index = {"_class_name": "Pipeline", "unet": ["diffusers", "UNet2DConditionModel"], "text_encoder_3": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    load_pipeline(tmp_path, torch.float16)
    assert passed == {"torch_dtype": torch.float16, "variant": None, "text_encoder_3": None}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.saved("stable_diffusion", tmp_path_factory.mktemp("saved"))


def test_a_single_file_gives_the_same_weights(saved: Path, tmp_path: Path) -> None:
    folder = load_pipeline(saved, torch.float32)
    save_single_file(folder, tmp_path / "one.safetensors")
    loaded = load_pipeline(tmp_path / "one.safetensors", torch.float32, config=str(saved))
    assert type(loaded) is type(folder)
    for part in ("unet", "vae", "text_encoder"):
        assert same_state(getattr(loaded, part), getattr(folder, part)), part


def test_a_variant_is_the_weights_of_that_name(saved: Path, tmp_path: Path) -> None:
    plain = load_pipeline(saved, torch.float32)
    plain.save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    assert list(tmp_path.glob("unet/diffusion_pytorch_model.fp16-*.safetensors"))
    assert same_state(load_pipeline(tmp_path, torch.float32, variant="fp16").unet, plain.unet)


def test_what_contradicts_itself_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(ValueError, match=r"one.safetensors is a single file, which has no variant fp16"):
        load_pipeline(tmp_path / "one.safetensors", torch.float32, variant="fp16")
    with pytest.raises(ValueError, match="is not a single file, and has its own configuration instead of sd15"):
        load_pipeline(saved, torch.float32, config="sd15")
