"""calibrate_cells: cells become rows of a quality profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitioner.errors import UsageError
from profiles.quality_profile import QualityProfile
from tests.tools.quality.test_cells import CELL, SCORE, results_of
from tools.quality import cells_calibration
from tools.quality.cells_calibration import calibrate_cells
from tools.quality.cells_cases import Case

CASES = [Case("unet", "ddim", 7.5, 20)]
RESULTS = {"versions": "python 3.11, torch 2.13, diffusers 0.42"}


@pytest.fixture(autouse=True)
def samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_calibration, "_sampler", lambda _denoiser, name, _steps: (f"{name}Scheduler", "{}"))


def test_a_cell_is_a_row_and_one_of_fewer_steps_and_replaces_what_was_known(tmp_path: Path) -> None:
    file = tmp_path / "quality.json"
    plain = {**CELL, "quality": "default"}
    two = {**plain, "branches": 2, "fewer_steps": 8.0, "fewer": {**SCORE, "psnr_db": 20.0}}
    noisy = {**plain, "note": "it adds noise"}
    others = [two, {**CELL, "quality": "off"}, {**plain, "steps": 28}, noisy, {"failed": "x"}]
    calibrate_cells(file, results_of({**plain, "samples": 64}, *others) | RESULTS, CASES)
    faster, fewer, ahead = sorted(QualityProfile.load(file).rows, key=lambda row: (row.components, row.psnr_db))
    assert (ahead.components, ahead.predictor, ahead.psnr_db, ahead.speedup) == (2, "lookahead", 50.0, 1.65)
    assert ahead.exact_share == 0.2
    assert (ahead.guidance_scale, ahead.steps, ahead.warmup, ahead.samples) == (7.5, 20, 2, 64)
    assert (fewer.predictor, fewer.psnr_db, fewer.speedup) == ("fewer_steps", 40.0, pytest.approx(20 / 12, abs=1e-3))
    assert (faster.predictor, faster.psnr_db, faster.speedup) == ("fewer_steps", 20.0, 2.5)
    calibrate_cells(file, results_of({**plain, "samples": 16, "engine": {**SCORE, "psnr_db": 47.0}}) | RESULTS, CASES)
    found = [row.psnr_db for row in QualityProfile.load(file).rows if row.predictor == "lookahead"]
    assert found == [47.0]


def test_cells_of_a_held_out_denoiser_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="held out"):
        calibrate_cells(tmp_path / "quality.json", results_of(CELL) | RESULTS, [Case("xl-unet", "ddim", 7.5, 20)])
    assert not (tmp_path / "quality.json").exists()
