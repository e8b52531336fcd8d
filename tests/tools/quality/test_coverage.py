"""tools.quality.coverage: the page says of every case what its figure rests on, and is that of the shipped profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiles.quality_profile import QualityProfile
from tests.support.quality_rows import profile_of
from tools.quality.coverage import coverage_page, main

PAGE = Path(__file__).parents[3] / "docs" / "results" / "coverage.md"


def test_the_published_page_is_that_of_the_shipped_profile() -> None:
    """After a wanted change: python -m tools.quality.coverage --write docs/results/coverage.md."""
    assert PAGE.read_text() == coverage_page(QualityProfile.load())


def test_measured_interpolated_and_unknown_are_told_apart() -> None:
    low, high = profile_of([("lookahead", 2, 60.0, 1.8)]), profile_of([("lookahead", 2, 30.0, 1.8)], 7.5)
    page = coverage_page(low.model_copy(update={"rows": low.rows + high.rows}))
    two, three = page.split("## 2 components")[1].split("## 3 components")
    cells = "- | -, 50, 50 | -, *between 3 and 7.5*, *between 3 and 7.5* | -, 50, 50 | -"
    assert f"| `DDIMScheduler` | {cells} |" in two
    assert "| `DDIMScheduler` | - | - | - | - | - |" in three


def test_the_command_writes_a_page_or_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile_of([("lookahead", 2, 60.0, 1.8)]).save(tmp_path / "q.json")
    assert main(["--profile", str(tmp_path / "q.json"), "--write", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text().startswith("# Measured and interpolated")
    assert main(["--profile", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
