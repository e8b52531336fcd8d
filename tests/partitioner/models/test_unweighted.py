"""Pipelines without weights: of a folder, and of one in memory."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from partitioner.errors import UsageError
from partitioner.models.stand_ins import StandIns
from partitioner.models.unweighted import build_pipeline, twin_of
from tests.support.undescribed_pipelines import made


def test_a_folder_s_parts_are_made_of_their_configurations(tmp_path: Path) -> None:
    made("aura_flow", tmp_path).save_pretrained(tmp_path / "aura")
    index = json.loads((tmp_path / "aura" / "model_index.json").read_text())
    pipe = build_pipeline(tmp_path / "aura", index, "bfloat16", StandIns())
    assert type(pipe).__name__ == "AuraFlowPipeline"
    assert pipe.transformer(torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 32), torch.zeros(1)).sample.shape == (1, 4, 8, 8)
    assert next(pipe.text_encoder.parameters()).dtype == torch.bfloat16

    (tmp_path / "aura" / "text_encoder" / "config.json").unlink()
    with pytest.raises(UsageError, match=r"the text_encoder of .*, a T5EncoderModel, cannot be made without weights"):
        build_pipeline(tmp_path / "aura", index, "float32", StandIns())


def test_classes_from_elsewhere_are_not_imported(tmp_path: Path) -> None:
    for entry in (["os", "PathLike"], ["diffusers", "NoSuchModel"], ["no_such_pipeline", "Model"]):
        index = {"_class_name": "AuraFlowPipeline", "transformer": entry}
        with pytest.raises(UsageError, match=rf"has a transformer of class {entry[0]}\.{entry[1]}, which neither"):
            build_pipeline(tmp_path, index, "float32", StandIns())
    with pytest.raises(UsageError, match="has no pipeline AutoencoderKL"):
        build_pipeline(tmp_path, {"_class_name": "AutoencoderKL"}, "float32", StandIns())


def test_a_twin_has_modules_of_its_own_and_shares_the_rest(tmp_path: Path) -> None:
    pipe = made("aura_flow", tmp_path)
    config = pickle.dumps(dict(pipe.config))
    twin = twin_of(pipe, StandIns())
    assert twin.transformer is not pipe.transformer
    assert twin.tokenizer is pipe.tokenizer
    assert pickle.dumps(dict(pipe.config)) == config
