"""calibrate_cells: adds the cells of tools.quality.cells to a quality profile, which the planner reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from partitioner.errors import UsageError
from partitioner.planning.options import default_warmup
from profiles.quality_profile import FEWER_STEPS, QualityRow
from tools.pictures.pipelines import HELD_OUT
from tools.quality.calibration import add_rows
from tools.quality.cells_cases import Case
from tools.quality.cells_file import Results
from tools.quality.measured_pipeline import MeasuredPipeline, shipped_pipeline
from tools.quality.samplers import SamplingCase

SPLIT, WHOLE = "contiguous", "one"  # the plans that cells are measured with, and none


def calibrate_cells(file: Path, results: Results, cases: Collection[Case]) -> None:
    """Add what cells say of look-ahead with the engine's own guard, and of fewer steps, to a profile.

    Rows of the same cases are replaced, whatever they were measured over.

    Args:
        file: the profile; it is made if it is not there.
        results: of tools.quality.cells.
        cases: whose cells are added.

    Raises:
        UsageError: there are cells of a held-out denoiser, which no choice of the planner may be made on.
    """
    held_out = [name for name in HELD_OUT if any(case.denoiser == name for case in cases)]
    if held_out:
        raise UsageError(f"--calibrate: {', '.join(held_out)} is held out: no choice may be made on it")
    versions = dict(part.rsplit(" ", 1) for part in results["versions"].split(", "))
    add_rows(file, rows_of(results, cases), results["commands"], results["date"], versions, replace=True)


def rows_of(results: Results, cases: Collection[Case]) -> Iterator[QualityRow]:
    """The rows of a quality profile that results say: of each cell one, and one of the fewer steps beside it.

    The pictures of two branches are those of one; of theirs only the fewer steps are told, at a higher speed-up.
    """
    for cell in results["cells"].values():
        if "failed" in cell or cell["quality"] != "default" or cell["note"] is not None:
            continue
        if Case(cell["denoiser"], cell["sampler"], cell["guidance"], cell["steps"]) not in cases:
            continue
        scheduler, config = _sampler(cell["denoiser"], cell["sampler"], cell["steps"])
        shared: dict[str, Any] = {
            "denoiser": cell["denoiser"],
            "scheduler": scheduler,
            "scheduler_config": config,
            "steps": cell["steps"],
            "guidance_scale": cell["guidance"],
            "samples": cell["samples"],
        }
        if cell["branches"] == 1:
            yield QualityRow(
                **shared,
                components=cell["components"],
                split=SPLIT,
                predictor="lookahead",
                warmup=default_warmup(cell["components"], "lookahead"),
                psnr_db=cell["engine"]["psnr_db"],
                speedup=cell["speedup"],
                exact_share=cell["exact"],
            )
        if cell["fewer_steps"] < cell["steps"]:
            yield QualityRow(
                **shared,
                components=1,
                split=WHOLE,
                predictor=FEWER_STEPS,
                warmup=max(1, round(cell["fewer_steps"])),  # all of them
                psnr_db=cell["fewer"]["psnr_db"],
                speedup=cell["steps"] / cell["fewer_steps"],
            )


@cache
def _pipeline(denoiser: str) -> MeasuredPipeline:
    return shipped_pipeline(denoiser, 1, 1, None)


def _sampler(denoiser: str, sampler: str, steps: int) -> tuple[str, str]:
    """A sampler's class, and its settings for a denoiser."""
    pipeline = _pipeline(denoiser)
    pipeline.use(SamplingCase(sampler, steps))
    return pipeline.sampler, pipeline.sampler_settings
