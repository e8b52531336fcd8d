"""A plot has a panel for every case, whether or not matplotlib is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from tools.quality.plot import plot


def row(steps: int, predictor: str, devices: int, speedup: float, psnr_db: float) -> dict[str, Any]:
    return {
        "scheduler": "DDIMScheduler", "steps": steps, "predictor": predictor, "split": "chain", "devices": devices,
        "speedup": speedup, "psnr_db": psnr_db, "samples": 1,
    }  # fmt: skip


@pytest.fixture
def document() -> dict[str, Any]:
    rows = [
        line
        for steps in (6, 8)
        for line in (
            row(steps, "sequential", 1, 1.0, 100.0),
            row(steps, "lookahead", 2, 1.5, 40.0),
            row(steps, "lookahead", 4, 2.5, 35.0),
            row(steps // 2, "fewer_steps", 1, 2.0, 25.0),
        )
    ]
    return {"denoiser": "unet", "rows": rows}


def test_a_panel_for_every_case_and_a_line_for_every_predictor(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = MagicMock()
    module: Any = ModuleType("matplotlib.figure")
    module.Figure = MagicMock(return_value=figure)
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
    plot(document, tmp_path / "plot.png")
    assert [call.args for call in figure.add_subplot.call_args_list] == [(1, 2, 1), (1, 2, 2)]
    axes = figure.add_subplot.return_value
    labels = [call.kwargs["label"] for call in axes.plot.call_args_list]
    assert labels == ["lookahead, chain", "fewer steps"] * 2
    assert axes.plot.call_args_list[0].args[:2] == ([1.5, 2.5], [40.0, 35.0])
    figure.savefig.assert_called_once()
