"""tools.measure models: every name in a process of its own, resumed where it ended, one page of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partitioner.models import checked
from partitioner.models.checked import CHECKED_FILE, CheckedName, checked_names
from tools.measure import models
from tools.measure.models import PAGE, check_name, page

FINE = CheckedName(4, 31.6, 40.0, 2_150_000_000, 20.0, 4000, None, "torch 2.13")
FAILED = CheckedName(4, 5.0, 5.0, 10**9, None, None, "it cannot be traced", "torch 2.13")


def test_it_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[str] = []

    def check(name: str, devices: int) -> CheckedName:
        made.append(name)
        return FAILED if name == "mochi" and made.count(name) == 1 else FINE

    for module in (models, checked):
        monkeypatch.setattr(module, "CHECKED_FILE", tmp_path / "checked.json")
    monkeypatch.setattr(models, "BUILT_IN", ("flux", "mochi"))
    monkeypatch.setattr(models, "PAGE", tmp_path / "models.md")
    monkeypatch.setattr(models, "check_name", check)
    assert models.main([]) == 1
    text = (tmp_path / "models.md").read_text()
    assert "| `flux` | 11.90 B | 4,096 | 4 | 32 | 20 | 40 | 2.15 GB | 4000 | torch 2.13 |" in text
    assert "- `mochi`: it cannot be traced" in text
    assert models.main(["--json"]) == 0
    assert made == ["flux", "mochi", "mochi"]
    assert models.main(["--again"]) == models.main(["--names", "flux"]) == 0
    assert made == ["flux", "mochi", "mochi", "flux", "mochi", "flux"]
    assert json.loads((tmp_path / "checked.json").read_text())["mochi"]["failed"] is None


def test_the_page_is_of_the_file() -> None:
    """Both are written by one command; the machine that the page names is another's."""
    machine = slice(5, None)
    assert PAGE.read_text().splitlines()[machine] == page(checked_names()).splitlines()[machine], CHECKED_FILE


@pytest.mark.slow
@pytest.mark.processes
def test_a_small_name_is_planned() -> None:
    entry = check_name("sd15", 2)
    assert entry.failed is None
    assert entry.nodes is not None
    assert entry.nodes > 800
    assert entry.peak_bytes > 2e8
    assert 0 < (entry.trace_seconds or 0) < entry.seconds
