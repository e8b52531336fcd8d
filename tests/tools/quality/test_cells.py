"""tools.quality.cells: cells in order, kept in a file, not measured again; their summary and page."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from partitioner.errors import UsageError
from partitioner.models.samplers import denoiser_calls
from partitioner.plan.plan import Plan
from tests.support import warm
from tools.quality import cells as command
from tools.quality.cells_cases import Case, Way, cases_of, key_of, parse_way, ways_of
from tools.quality.cells_file import is_done, read_results, write_results
from tools.quality.cells_page import document_page
from tools.quality.cells_runs import fewer_steps
from tools.quality.cells_summary import is_met, summary, targets, worst
from tools.quality.engine_config import EngineConfig
from tools.quality.measured_pipeline import shipped_pipeline
from tools.quality.runs import speedup_of

pytestmark = pytest.mark.usefixtures("trace_once")

SCORE = {
    "psnr_db": 50.0, "worst_db": 44.0, "agreement": 0.8, "agreement_noise": 0.0, "frechet": 3.0, "frechet_noise": 0.1,
}  # fmt: skip
CELL: dict[str, Any] = {
    "denoiser": "unet", "sampler": "ddim", "guidance": 7.5, "steps": 20, "branches": 1, "components": 2,
    "quality": "good", "samples": 64, "chunk": 4, "engine": SCORE, "fewer": {**SCORE, "psnr_db": 40.0},
    "sequential": {**SCORE, "psnr_db": 100.0}, "speedup": 1.65, "planned_speedup": 1.7, "fewer_steps": 12.0,
    "exact": 0.2, "lookahead": 0.8, "lagged": 0.0, "reasons": {"warm-up": 0.2}, "note": None, "bound_db": 30.0,
    "below_bound": 0.0, "behind_fewer": 0.0, "seconds": 1.0, "commit": "abc",
}  # fmt: skip
LOST = {
    **CELL, "sampler": "lcm", "steps": 4, "engine": {**SCORE, "psnr_db": 20.0, "agreement": 0.5, "frechet": 9.0},
    "lagged": 0.5, "note": "it adds noise", "below_bound": 0.5, "behind_fewer": 0.75,
}  # fmt: skip


def results_of(*cells: dict[str, Any]) -> dict[str, Any]:
    keyed = {f"{cell.get('sampler')} {number}": cell for number, cell in enumerate(cells)}
    return {"versions": "torch 2.13", "commands": ["python -m x"], "date": "2026-01-01", "cells": keyed}


def test_cases_come_breadth_first_with_the_samplers_that_suit() -> None:
    cases = cases_of(["unet", "mmdit"], ["ddim", "flow", "lcm"], [7.5, 3], [20, 28])
    scales = list(dict.fromkeys(case.guidance for case in cases))
    assert scales == [4.5, 7.5, 3]
    assert {case.denoiser for case in cases if case.guidance == 4.5} == {"mmdit"}
    assert [case for case in cases if case.guidance == 3] == [
        Case("unet", "ddim", 3, 20), Case("mmdit", "flow", 3, 20), Case("unet", "ddim", 3, 28),
        Case("mmdit", "flow", 3, 28), Case("unet", "lcm", 3, 4), Case("unet", "lcm", 3, 8),
    ]  # fmt: skip


def test_two_branches_need_guidance() -> None:
    ways = [parse_way("1x2"), parse_way("2x2")]
    assert ways_of(Case("unet", "ddim", 1, 20), ways) == [Way(1, 2)]
    assert ways_of(Case("unet", "ddim", 3, 20), ways) == ways


@pytest.mark.parametrize("options", [["--ways", "1x1"], ["--only", "none"], ["--denoisers", "none"], ["--steps", "1"]])
def test_what_is_not_known_is_refused(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--results", str(tmp_path / "cells.json"), *options]) == 2
    assert "tools.quality.cells: " in capsys.readouterr().err


def test_results_are_kept_and_those_of_other_versions_refused(tmp_path: Path) -> None:
    file = tmp_path / "cells.json"
    results = results_of(CELL, {"failed": "ValueError: no"})
    write_results(file, results)
    assert read_results(file, "torch 2.13") == results
    good, failed = results["cells"]
    assert is_done(results, good, 64)
    assert not is_done(results, good, 65), "over more samples it is another measurement"
    assert not is_done(results, failed, 1)
    with pytest.raises(UsageError, match="name another file"):
        read_results(file, "torch 2.14")


def test_the_summary_counts_cells_and_what_the_guard_let_pass() -> None:
    lines = "\n".join(summary([CELL, LOST]))
    counted = "of the others at least as near as fewer steps 1 of 2 (50.0%), 3 dB better 1 of 2 (50.0%)"
    assert (
        f"all denoisers that choices were made on: 98% of the calls and more exact in 0 of 2 (0.0%) cells; {counted}"
        in lines
    )
    assert "two components, unet: " in lines
    assert "agreement that of sequential within noise in 1 of 2 (50.0%) cells, Fréchet distance in 1 of 2" in lines
    assert "48 of 128 (37.5%) pictures further from sequential than those of fewer steps" in lines
    assert "32 of 128 (25.0%) pictures below the guard's bound" in lines
    assert worst([CELL, LOST])[0] is LOST


def test_cells_that_are_exact_and_held_out_denoisers_are_counted_apart() -> None:
    whole = {**CELL, "exact": 1.0, "engine": {**SCORE, "psnr_db": 99.0}, "fewer": {**SCORE, "psnr_db": 100.0}}
    lines = summary([CELL, whole, {**CELL, "denoiser": "xl-unet"}])
    assert "98% of the calls and more exact in 1 of 2 (50.0%) cells; of the others at least as near" in lines[0]
    assert "as fewer steps 1 of 1 (100.0%), 3 dB better 1 of 1 (100.0%) (median margin +10.0 dB" in lines[0]
    assert ["xl-unet (held out)" in line for line in lines[:3]] == [False, False, True]
    assert "0 of 128 (0.0%) pictures below the guard's bound, of cells that are not exact" in "".join(lines)
    assert "98% of the calls and more exact in 1 of 1" in summary([whole])[0]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return shipped_pipeline("unet", 1, 1, None).plan(EngineConfig(2, 1, "chain"))[0]


@pytest.mark.parametrize(("exact", "others"), [(20, 0), (4, 16), (9, 11), (2, 18)])
@pytest.mark.parametrize("sampler", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_fewer_steps_take_no_longer_than_the_engine_and_one_more_would(
    plan: Plan, sampler: str, exact: int, others: int
) -> None:
    time = denoiser_calls(sampler, 20) / speedup_of(plan, exact, others)
    steps = fewer_steps(plan, sampler, 20, exact, others)
    assert denoiser_calls(sampler, steps) <= time * 1.001
    assert steps == 20 or denoiser_calls(sampler, steps + 1) > time


def test_where_people_are_has_a_table_of_its_own() -> None:
    flow = {**CELL, "sampler": "flow", "guidance": 4.5, "speedup": 1.5}
    four = {**CELL, "branches": 2, "speedup": 3.3}
    found = targets([CELL, LOST, flow, four], 1)
    assert [is_met(cell) for cell in found] == [True, False]
    assert [is_met(cell) for cell in targets([CELL, four], 2)] == [True]


def test_the_page_shows_every_cell() -> None:
    page = document_page(results_of(CELL, LOST, {"failed": "ValueError: a | b"}))
    assert "2 cells of 64 samples, 4 in a call; commit abc:\n\n```sh\npython -m x\n```" in page
    assert "Wanted: 45 dB at 1.6x. Met in 1 of 1 cells." in page
    assert "## unet, 1 x 2, quality good" in page
    assert "| ddim | 20 | 50.0 (44.0) / 40.0 @ 1.65 |" in page
    assert "| lcm | 4 | **20.0 (44.0)** / 40.0 @ 1.65 async |" in page
    assert "| lcm | `it adds noise` |" in page
    assert "| `None 2` | `ValueError: a / b` |" in page


@pytest.mark.slow
def test_cells_are_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "cells.json", tmp_path / "cells.md"
    options = ["--results", str(file), "--denoisers", "unet", "--only", "ddim", "--guidance", "3", "--steps", "8"]
    options += ["--ways", "1x2,2x2", "--samples", "3", "--chunk", "2", "--write", str(page)]
    assert command.main(options) == 0
    assert "quality default, two components, unet: 98% of the calls" in capsys.readouterr().out
    kept = json.loads(file.read_text())
    one, two = (kept["cells"][key_of(Case("unet", "ddim", 3, 8), way, "default")] for way in (Way(1, 2), Way(2, 2)))
    assert one["samples"] == 3
    assert one["engine"] == two["engine"]
    assert one["engine"]["psnr_db"] > one["engine"]["worst_db"] > 30
    assert two["speedup"] > 1.5 * one["speedup"]
    assert two["fewer_steps"] < one["fewer_steps"] <= 8
    assert one["exact"] + one["lookahead"] + one["lagged"] == pytest.approx(1)
    assert sum(one["reasons"].values()) == pytest.approx(one["exact"])
    assert (one["bound_db"], one["below_bound"]) == (26.0, 0.0)
    off = kept["cells"][key_of(Case("unet", "ddim", 3, 8), Way(1, 2), "off")]
    assert off["bound_db"] is None
    assert "## unet, 2 x 2, quality default" in page.read_text()
    assert command.main(options) == 0
    assert json.loads(file.read_text()) == kept


def test_a_case_that_fails_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter([{"a": {"failed": "ValueError: no"}}, {"b": CELL}])
    monkeypatch.setattr(command, "measure_case", lambda *_: next(found))
    file = tmp_path / "cells.json"
    options = ["--denoisers", "unet", "--only", "ddim", "--guidance", "3", "--steps", "8,9", "--ways", "1x2"]
    assert command.main(["--results", str(file), *options]) == 0
    assert set(json.loads(file.read_text())["cells"]) == {"a", "b"}
    assert "a failed: ValueError: no" in capsys.readouterr().err
    assert command.main(["--results", str(file), *options, "--minutes", "0"]) == 0
    assert " cases" not in capsys.readouterr().err


ORPHAN = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from tools.quality.cells import end_with_parent
import os, signal
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.processes
def test_processes_of_a_command_that_was_killed_end_too(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    made = warm.run([str(script)], capture_output=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    number = int(made.stdout)
    for _ in range(600):
        if not Path(f"/proc/{number}").exists():
            return
        time.sleep(0.1)
    os.kill(number, signal.SIGKILL)
    raise AssertionError(f"process {number} is still there")
