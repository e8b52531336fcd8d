"""profiles.quality_profile: what is measured is read back, and asked for sensibly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from profiles.json_files import JsonFileError
from profiles.quality_profile import SCHEMA_VERSION, MeasuredDrift, QualityProfile, QualityRow
from tools.pictures.pipelines import DENOISERS


def row(**fields: Any) -> QualityRow:
    given: dict[str, Any] = {
        "denoiser": "unet", "scheduler": "DDIMScheduler", "steps": 50, "components": 2,
        "split": "contiguous", "predictor": "lookahead", "warmup": 4, "samples": 256, "psnr_db": 55.0, "speedup": 1.8,
        "guidance_scale": 3.0,
    }  # fmt: skip
    return QualityRow(**(given | fields))


@pytest.fixture
def profile() -> QualityProfile:
    rows = (row(), row(predictor="fewer_steps", components=1, guidance_scale=7.5, scheduler_config='{"shift": 3.0}'))
    return QualityProfile(schema_version=SCHEMA_VERSION, date="2026-01-01", commands=("x",), versions={}, rows=rows)


def test_round_trip(profile: QualityProfile, tmp_path: Path) -> None:
    drift = MeasuredDrift(denoiser="mine", edges=(("a/add.0", "b/mul.0"),), sketches=((0.5, -1e-7),))
    profile = profile.model_copy(update={"drift": (drift,)})
    profile.save(tmp_path / "q.json")
    assert QualityProfile.load(tmp_path / "q.json") == profile
    with pytest.raises(JsonFileError, match="exists already"):
        profile.save(tmp_path / "q.json")


@pytest.mark.parametrize("sketches", [(), ((1.0,), (2.0, 3.0)), ((1.0,), (2.0,), (3.0,))])
def test_every_edge_has_one_sketch_of_one_length(sketches: Any) -> None:
    with pytest.raises(ValueError, match="one sketch for every edge"):
        MeasuredDrift(denoiser="mine", edges=(("a", "b"), ("b", "c")), sketches=sketches)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 3}', '{"schema_version": 2, "rows": "all"}'])
def test_what_is_none_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(JsonFileError) as caught:
        QualityProfile.load(tmp_path / "q.json")
    assert "\n" not in str(caught.value)


def test_a_profile_that_says_nothing_of_guidance_is_refused_with_how_to_make_one(
    profile: QualityProfile, tmp_path: Path
) -> None:
    document = profile.model_dump(mode="json") | {"schema_version": 1}
    for line in document["rows"]:
        del line["guidance_scale"], line["scheduler_config"]
    (tmp_path / "q.json").write_text(json.dumps(document))
    with pytest.raises(JsonFileError, match=r"guidance scale .* python -m tools.quality .* --calibrate FILE"):
        QualityProfile.load(tmp_path / "q.json")


def test_the_shipped_profile_has_all_shipped_denoisers() -> None:
    assert {row.denoiser for row in QualityProfile.load().rows} == set(DENOISERS)
