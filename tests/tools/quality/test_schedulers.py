"""tools.quality.schedulers: rows of every scheduler, kept in a file and not measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partitioner.models.sampler_probe import probe
from tests.support.schedulers import BETAS, scheduler_of
from tools.quality.schedulers import main, saying, scheduler_names


def test_what_the_probe_says_is_put_in_words() -> None:
    said = {
        "DDIMScheduler": "one call per step",
        "HeunDiscreteScheduler": "two calls per step, the second's share is 0.5",
        "DPMSolverMultistepScheduler": "multistep, errors grow up to 2.",
        "LCMScheduler": "it adds noise of its own in its steps",
    }
    for name, words in said.items():
        assert saying(probe(scheduler_of(name, BETAS, 10))).startswith(words)
    assert set(said) < set(scheduler_names())


def test_a_scheduler_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "rows.json"), "--schedulers", "NoSuchScheduler"]) == 2
    assert "diffusers has no NoSuchScheduler" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_are_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "rows.json", tmp_path / "page.md"
    options = ["--results", str(file), "--guidance", "3", "--steps", "8", "--samples", "1", "--write", str(page)]
    options += ["--schedulers", "DDIMScheduler,AmusedScheduler"]
    assert main(options) == 0
    first = json.loads(file.read_text())
    (row,) = first["rows"]
    assert (row["scheduler"], row["denoiser"], row["steps"], row["calls"]) == ("DDIMScheduler", "unet", 8, [4, 4, 0])
    assert row["lookahead_db"] > row["hold_db"]
    assert "AmusedScheduler" in first["not_run"]
    assert "| `DDIMScheduler` |" in page.read_text()
    capsys.readouterr()
    assert main(options) == 0
    assert json.loads(file.read_text())["rows"] == first["rows"]
    assert " rows\n" not in capsys.readouterr().err
