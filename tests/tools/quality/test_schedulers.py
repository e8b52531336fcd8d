"""tools.quality.schedulers: rows of every scheduler, kept in a file and not measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.quality.schedulers import main, scheduler_names

pytestmark = pytest.mark.usefixtures("trace_once")


def test_a_scheduler_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "rows.json"), "--schedulers", "NoSuchScheduler"]) == 2
    assert "diffusers has no NoSuchScheduler" in capsys.readouterr().err
    assert {"DDIMScheduler", "LCMScheduler"} < set(scheduler_names())


def test_rows_of_other_samples_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"rows": [], "not_run": {}, "samples": 2}))
    assert main(["--results", str(file), "--samples", "3"]) == 2
    assert "holds rows of 2 samples" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_are_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "rows.json", tmp_path / "page.md"
    options = ["--results", str(file), "--guidance", "3", "--steps", "8", "--samples", "1", "--write", str(page)]
    options += ["--schedulers", "DDIMScheduler,AmusedScheduler"]
    assert main(options) == 0
    first = json.loads(file.read_text())
    (row,) = first["rows"]
    assert (row["scheduler"], row["denoiser"], row["steps"]) == ("DDIMScheduler", "unet", 8)
    exact, ahead, lagged = row["calls"]
    assert (exact + ahead, lagged) == (8, 0)
    assert 4 <= exact < 8  # the warm-up, and what the guard adds
    assert row["lookahead_db"] > row["hold_db"]
    assert "AmusedScheduler" in first["not_run"]
    assert "| `DDIMScheduler` |" in page.read_text()
    capsys.readouterr()
    assert main(options) == 0
    assert json.loads(file.read_text())["rows"] == first["rows"]
    assert " rows\n" not in capsys.readouterr().err
