"""The command makes the cells that are asked for, writes its page, and fails if a cell is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.features.__main__ import main
from tools.features.cell import Cell
from tools.features.matrix import FEATURES
from tools.features.subject import PIPELINES
from tools.features.table import counts, page


def test_a_page_says_what_was_found() -> None:
    cells = {
        "a": {"Flux": Cell("equal", "", 0.0), "AnimateDiff": Cell("refused", "no `a`\nbut b")},
        "b": {"Flux": Cell("differs", "", 0.25), "AnimateDiff": Cell("refused", "no `a`\nbut b")},
    }
    text = page(cells, ["Flux", "AnimateDiff"], {"date": "today"})
    assert "| a | equal | refused (1) |" in text
    assert "| b | **differs** 0.2 | refused (1) |" in text
    assert "1. `no 'a' but b`" in text
    assert "- cells: 1 equal, 2 refused, 1 differs" in text
    assert counts(cells) == {"equal": 1, "refused": 2, "differs": 1}


def test_rows_have_names_of_their_own() -> None:
    rows = [step.row for feature in FEATURES for step in feature.steps]
    assert len(rows) == len(set(rows))


@pytest.mark.slow
def test_cheap_cells_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.md"
    arguments = ["--only", "^hook on the denoiser, inside", "--pipelines", "Flux", "--page", str(file), "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cells"]["hook on the denoiser, inside"]["Flux"]["verdict"] == "equal"
    assert "| hook on the denoiser, inside | equal |" in file.read_text()


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "no such row"]) == 2
    assert "no row contains" in capsys.readouterr().err
    assert set(PIPELINES) == {"StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "AnimateDiff"}
