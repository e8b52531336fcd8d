"""The page of tools.quality.schedulers."""

from __future__ import annotations

from tools.quality.schedulers_table import document_page


def test_a_page_has_what_was_measured_and_marks_what_is_worse_than_hold() -> None:
    row = {
        "denoiser": "unet", "scheduler": "DDIMScheduler", "guidance": 3.0, "steps": 20, "says": "one call per step",
        "lookahead_db": 60.0, "hold_db": 36.0, "fewer_db": 46.5, "fewer_steps": 12, "calls": (4, 16, 0),
    }  # fmt: skip
    worse = {**row, "guidance": 7.5, "lookahead_db": 10.0, "hold_db": 14.0, "calls": (6, 0, 14)}
    known = {"date": "2026-01-01", "versions": {"torch": "2.13"}, "samples": 4, "command": "python -m x"}
    page = document_page({**known, "rows": [row, worse], "not_run": {"RePaintScheduler": "unet: a | b <c>"}})
    assert "2026-01-01; torch 2.13; 4 samples:\n\n```sh\npython -m x\n```" in page
    assert "| `DDIMScheduler` | `unet` | one call per step |" in page
    assert "| scheduler | guidance 3 | guidance 7.5 |" in page
    assert "| `DDIMScheduler` | 60.0, 36.0, 46.5 (4+16+0) | **10.0**, 14.0, 46.5 (6+0+14) |" in page
    assert "| `RePaintScheduler` | unet: a \\| b &lt;c> |" in page
