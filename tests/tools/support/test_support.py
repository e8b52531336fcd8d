"""python -m tools.support, its results file and its page."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.support.sources import ROOT
from tools.pages import commit
from tools.support import __main__ as command
from tools.support import results
from tools.support.denoisers import DENOISERS
from tools.support.pipeline_tries import TriedPipeline
from tools.support.pipelines import PIPELINES
from tools.support.results import read_results, write_results
from tools.support.table import page, traces

DENOISER = {"failed": None, "why": "", "nodes": 7, "difference": 0.0, "lora": "exact"}
REFUSED = {"failed": "trace", "why": "TraceError: no | `way`", "nodes": 0, "difference": None, "lora": "none"}
PIPELINE = {
    "denoiser": "UNet2DModel", "failed": None, "why": "", "difference": 2e-6, "repeats": True, "looks_ahead": True,
    "moves": 0.1, "calls": 12, "calls_per_step": 2, "could_be_lagged": 10, "lagged": 7, "exact": {"another prompt": 3},
    "commit": "0123abc", "could_be_foreseen": 5, "foreseen": 4, "wasted": 1, "branches_differ": 0.0,
    "no_streams": "no | way",
}  # fmt: skip


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Classes are not tried, but noted here."""
    names: list[str] = []

    def try_one(kind: str, name: str) -> dict[str, Any]:
        names.append(name)
        return PIPELINE if kind == "pipelines" else DENOISER

    monkeypatch.setattr(results, "try_one", try_one)
    return names


def test_a_run_goes_on_where_it_was_stopped(tried: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "found.json"
    assert command.main(["--only", "DDIM", "--results", str(kept)]) == 0
    assert command.main(["--only", "dd", "--results", str(kept)]) == 0
    assert tried.count("DDIMPipeline") == tried.count("DDPMPipeline") == 1
    assert command.main(["--only", "DDIM", "DDPM", "--results", str(kept), "--again"]) == 0
    assert tried[-2:] == ["DDPMPipeline", "DDIMPipeline"]
    assert json.loads(kept.read_text())["pipelines"]["DDPMPipeline"] == PIPELINE


def test_part_of_the_classes_changes_no_page(tried: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "DDIM", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pipelines"] == {"DDIMPipeline": PIPELINE}
    assert command.main(["--only", "no such class"]) == 2
    assert "no class contains 'no such class'" in capsys.readouterr().err


def test_results_of_other_versions_are_not_used(tmp_path: Path) -> None:
    kept = tmp_path / "found.json"
    write_results(kept, {"versions": "old", "denoisers": {"A": DENOISER}, "pipelines": {}})
    assert read_results(kept, "old")["denoisers"] == {"A": DENOISER}
    assert read_results(kept, "new")["denoisers"] == {}


def test_a_row_says_the_commit_that_it_was_run_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "try_pipeline", lambda *_: TriedPipeline())
    assert results.try_one("pipelines", "DDIMPipeline")["commit"] == commit()


def test_the_page_says_what_fails_and_what_was_not_tried() -> None:
    found = {
        "versions": "torch 9", "denoisers": {"UNet2DModel": DENOISER, "UVit2DModel": REFUSED},
        "pipelines": {"DDIMPipeline": PIPELINE},
    }  # fmt: skip
    text = page(found)
    assert "1 of 2 trace" in text
    assert "| UNet2DModel | 7 | 0 | exact | 1 of 1 |  |" in text
    assert "| UVit2DModel |  |  | takes none |  | fails to trace: `TraceError: no / 'way'` |" in text
    assert "| DDIMPipeline | UNet2DModel | 2e-06 | yes | yes | 2 | 7 of 10 | 4 of 5 | 0123abc |" in text
    assert "| 3 exact: another prompt; 1 foreseen in vain; none foreseen: `no / way` |" in text
    assert "| DDPMPipeline | | | | | | | | | not tried yet |" in text
    assert "of 1 that call it twice or more per step, 0 have 80 %" in text
    assert "lagged that could have been, and 1 as many foreseen" in text


def test_the_page_in_the_documentation_is_made_of_its_results() -> None:
    found = json.loads((ROOT / command.RESULTS).read_text(encoding="utf-8"))
    assert page(found) == (ROOT / command.PAGE).read_text(encoding="utf-8"), "run python -m tools.support"
    assert set(found["denoisers"]) <= set(DENOISERS)
    assert set(found["pipelines"]) <= set(PIPELINES)
    assert f"diffusers {version('diffusers')}" in found["versions"], "run python -m tools.support"


def test_at_least_sixty_classes_trace() -> None:
    found = json.loads((ROOT / command.RESULTS).read_text(encoding="utf-8"))
    assert sum(map(traces, found["denoisers"].values())) >= 60
