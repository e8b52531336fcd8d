"""Result rows as text: a table of all of them, and a line for one as soon as it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from partitioner.tables import table_text
from tools.quality.result_row import ResultRow

COLUMNS = {
    "scheduler": "", "steps": "", "guidance_scale": "g", "devices": "", "branches": "", "components": "",
    "split": "", "predictor": "", "warmup": "", "guard": "g", "exact_calls": "g", "psnr_db": ".2f",
    "floor_float16_db": ".1f", "floor_bfloat16_db": ".1f", "ssim": ".4f", "agreement": "", "frechet": "",
    "frechet_noise": "", "speedup": ".2f",
}  # fmt: skip
LEFT = ("scheduler", "split", "predictor")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per row of a document; "-" for a figure that was not measured."""
    cells = [["-" if row[name] is None else format(row[name], form) for name, form in COLUMNS.items()] for row in rows]
    return table_text(list(COLUMNS), cells, left={number for number, name in enumerate(COLUMNS) if name in LEFT})


def progress_line(row: ResultRow) -> str:
    """What was run, its PSNR and its speed-up."""
    guidance = "" if row.guidance_scale is None else f" guidance {row.guidance_scale:g},"
    return (
        f"{row.scheduler}, {row.steps} steps,{guidance} {row.devices} devices, {row.branches} x {row.components} "
        f"{row.split}, {row.predictor}: PSNR {row.psnr_db:.2f} dB, speed-up {row.speedup:.2f}"
    )
