"""load_pipeline: a folder's index says which parts are there; whole pipelines are loaded in test_cli and test_train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from runtime.loading import load_pipeline


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
    assert passed == {"torch_dtype": torch.float16, "text_encoder_3": None}
