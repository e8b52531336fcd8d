"""partitioner.models.guidance_scale: the default of a pipeline's call, by its signature, and what is in effect."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from partitioner.models.guidance_scale import live_scale, scale_in_effect, scale_of_call
from partitioner.models.source import default_scale, find_source


def of_qwen(self: Any, prompt: str, true_cfg_scale: float = 4.0, guidance_scale: float | None = None) -> None: ...
def of_kandinsky(self: Any, prompt: str, guidance_scale: int = 5) -> None: ...
def of_a_cascade(self: Any, guidance_scale: float | None = None) -> None: ...
def of_no_default(self: Any, guidance_scale: float) -> None: ...
def of_none(self: Any, prompt: str, eta: float = 0.0) -> None: ...


@pytest.mark.parametrize(
    ("call", "given", "expected"),
    [
        (of_qwen, {}, 4.0),
        (of_qwen, {"guidance_scale": 2.0}, 4.0),
        (of_qwen, {"true_cfg_scale": 2}, 2.0),
        (of_kandinsky, {}, 5.0),
        (of_kandinsky, {"guidance_scale": 7.5}, 7.5),
        (of_a_cascade, {}, None),
        (of_no_default, {}, None),
        (of_none, {}, None),
        (None, {}, None),
    ],
)
def test_a_call_has_what_is_given_else_its_default(call: Any, given: dict[str, Any], expected: float | None) -> None:
    assert scale_of_call(call, given) == expected


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [("StableDiffusionPipeline", 7.5), ("FluxPipeline", 1.0), ("NoPipelineOfThatName", None), (None, None)],
)
def test_the_default_of_a_class_of_diffusers(pipeline: str | None, expected: float | None) -> None:
    assert default_scale(pipeline) == expected


def test_a_pipeline_with_a_guider_has_the_guiders() -> None:
    guider = SimpleNamespace(prepare_inputs=None, guidance_scale=4)
    assert live_scale(SimpleNamespace(guider=guider)) == 4.0
    assert live_scale(SimpleNamespace(guider=None)) is None


def test_what_computes_no_second_half_is_at_scale_1() -> None:
    assert [scale_in_effect(style, 3.5) for style in ("none", "embedded", "batch", "two-calls", None)] == [
        1.0, 1.0, 3.5, 3.5, 3.5,
    ]  # fmt: skip
    assert scale_in_effect("batch", 0.5) == 1.0
    assert scale_in_effect("batch", None) is None


def test_a_folder_and_a_name_bring_their_pipelines_scale(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    folder, named = find_source(str(tmp_path)), find_source("sd3")
    assert [source and source.guidance_scale for source in (folder, named)] == [7.5, 7.0]
