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
    fewer = {"predictor": "fewer_steps", "components": 1}
    rows = (
        row(),
        row(denoiser="dit", psnr_db=58.0),
        row(steps=20, psnr_db=45.0),
        row(scheduler="UniPCMultistepScheduler", psnr_db=40.0),
        row(components=4, psnr_db=42.0),
        row(predictor="hold", psnr_db=33.0),
        row(predictor="hold", split="folded", psnr_db=31.0),
        row(**fewer, psnr_db=40.0, speedup=2.0),
        row(**fewer, psnr_db=30.0, speedup=4.0),
        row(**fewer, denoiser="dit", psnr_db=36.0, speedup=3.0),
    )
    return QualityProfile(schema_version=SCHEMA_VERSION, date="2026-01-01", commands=("x",), versions={}, rows=rows)


def test_round_trip(profile: QualityProfile, tmp_path: Path) -> None:
    drift = MeasuredDrift(denoiser="mine", edges=(("a/add.0", "b/mul.0"),), sketches=((0.5, -1e-7),))
    profile = profile.model_copy(update={"drift": (drift,)})
    profile.save(tmp_path / "q.json")
    assert QualityProfile.load(tmp_path / "q.json") == profile
    with pytest.raises(JsonFileError, match="exists already"):
        profile.save(tmp_path / "q.json")


def test_the_least_over_denoisers_of_the_nearest_case(profile: QualityProfile) -> None:
    assert profile.expected(2, "lookahead", 50, "DDIMScheduler") == 55.0
    assert profile.expected(2, "lookahead", 30, "DDIMScheduler") == 45.0
    assert profile.expected(2, "lookahead", 40, "DDIMScheduler") == 55.0
    assert profile.expected(2, "lookahead", 50, None) == 40.0
    assert profile.expected(2, "hold", 50, None) == 31.0
    assert profile.expected(4, "lookahead", 50, "DDIMScheduler") == 42.0


def test_what_was_not_measured_is_not_known(profile: QualityProfile) -> None:
    assert profile.expected(2, "lookahead", 200, "DDIMScheduler") is None
    assert profile.expected(3, "lookahead", 50, "DDIMScheduler") is None
    assert profile.expected(2, "linear", 50, "DDIMScheduler") is None
    assert profile.expected(2, "lookahead", 50, "HeunDiscreteScheduler") is None


def test_fewer_steps_between_measured_speedups(profile: QualityProfile) -> None:
    assert profile.fewer_steps(2.5, 50, "DDIMScheduler") == 37.5
    assert profile.fewer_steps(3.0, 50, "DDIMScheduler") == 36.0  # the DiT's, which is more than 35
    assert profile.fewer_steps(5.0, 50, "DDIMScheduler") is None


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
