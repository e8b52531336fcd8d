"""The golden file holds what the solver promises, and today's solver is no worse than it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from partitioner.baselines.asyncdiff_split import published_split
from partitioner.search.mode import MODES
from partitioner.search.solver import SWEEP
from profiles.json_files import canonical_bytes, read_json
from tools import compare_splits
from tools.published.golden import GOLDEN, merged, worse_rows
from tools.published.splits import MODELS, SWEPT, TARGETS, document
from tools.published.splits_table import table

# Megabytes that AsyncDiff's code broadcasts in a step: outputs of all its hooked modules, counted with fake tensors.
BROADCAST_MB = {
    "sd15": {2: 64.9, 3: 72.8, 4: 64.9},
    "sd21": {2: 146.1, 3: 128.4, 4: 187.4},
    "sdxl": {2: 257.2, 3: 257.2, 4: 275.5},
    "svd": {2: 3210.9, 3: 3210.9, 4: 4943.5},
    "animatediff": {2: 913.3, 3: 913.3},
    "sd3": {2: 677.3, 3: 677.3, 4: 677.3},
}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found = read_json(GOLDEN, 1_000_000)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return document(["sd15"])


def test_every_model_number_and_mode_is_there(golden: dict[str, Any]) -> None:
    rows = {(row["model"], row["devices"], row["mode"]) for row in golden["gaps"]}
    assert rows == {(model, count, mode) for model in MODELS for count in TARGETS for mode in MODES}
    compared = {(row["model"], row["devices"]) for row in golden["asyncdiff"]}
    published = {(model, count) for model in MODELS for count in TARGETS if published_split(model, count) is not None}
    assert compared == published
    assert published >= {(model, count) for model, counts in BROADCAST_MB.items() for count in counts}


def test_gaps_are_within_the_targets_unless_one_node_prevents_it(golden: dict[str, Any]) -> None:
    for row in golden["gaps"]:
        target = TARGETS[row["devices"]]
        assert row["gap"] <= target or row["straddling_node"] > target, row
        if row["mode"] == "async":
            assert row["gap"] <= target, row


def test_components_hold_few_parameters_twice(golden: dict[str, Any]) -> None:
    for row in golden["gaps"]:
        if row["devices"] <= 4:
            assert row["repeated_parameters"] <= 0.02, row


def test_no_figure_is_worse_than_asyncdiffs(golden: dict[str, Any]) -> None:
    for row in golden["asyncdiff"]:
        ours, theirs = row["ours"], row["theirs"]
        assert ours["step_ms"] <= theirs["step_ms"] * (1 + 1e-9), row
        assert ours["staleness"] <= theirs["staleness"] * (1 + 1e-9), row
        assert ours["bytes_per_step"] <= theirs["bytes_per_step"], row
        assert ours["bytes_per_step"] < theirs["broadcast_bytes_per_step"], row


def test_what_asyncdiff_broadcasts_is_reproduced(golden: dict[str, Any]) -> None:
    counted = [row for row in golden["asyncdiff"] if row["model"] in BROADCAST_MB]
    assert len(counted) == sum(map(len, BROADCAST_MB.values()))
    for row in counted:
        megabytes = row["theirs"]["broadcast_bytes_per_step"] / 1e6
        assert megabytes == pytest.approx(BROADCAST_MB[row["model"]][row["devices"]], abs=0.06)


@pytest.mark.slow
def test_todays_solver_is_no_worse_than_the_golden_file(found: dict[str, Any], golden: dict[str, Any]) -> None:
    assert worse_rows(found, golden) == []


@pytest.mark.slow
def test_a_sweep_shows_what_a_slower_step_buys(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_splits.main(["--model", "sd15", "--sweep"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(SWEPT) * len(SWEEP)
    for count in SWEPT:
        rows = [line.split() for line in lines if line.split()[1] == str(count)]
        assert [float(row[2].rstrip("%")) / 100 for row in rows] == pytest.approx(SWEEP)
        step_ms, staleness = ([float(row[k]) for row in rows] for k in (4, 5))
        assert step_ms[-1] <= step_ms[0] * (1 + SWEEP[-1]) * 1.001
        assert staleness[-1] < staleness[0]


@pytest.mark.slow
def test_worse_and_new_rows_are_named(found: dict[str, Any], golden: dict[str, Any]) -> None:
    worse = copy.deepcopy(found)
    worse["asyncdiff"][0]["ours"]["step_ms"] *= 1.1
    worse["gaps"][1]["devices"] = 5
    complaints = worse_rows(worse, golden)
    assert any("sd15 on 2 devices (asyncdiff) got worse" in text for text in complaints)
    assert any("sd15 on 5 devices (async) is not in the golden file" in text for text in complaints)


@pytest.mark.slow
def test_table_has_a_line_for_each_row(found: dict[str, Any]) -> None:
    lines = table(found).splitlines()
    assert len([line for line in lines if line.startswith("sd15")]) == len(found["gaps"]) + len(found["asyncdiff"])


@pytest.mark.slow
def test_update_keeps_other_models_and_no_times(found: dict[str, Any], golden: dict[str, Any]) -> None:
    result = merged(golden, found)
    assert [row["model"] for row in result["gaps"]] == [row["model"] for row in golden["gaps"]]
    assert all("seconds" not in row for row in result["gaps"])


@pytest.mark.slow
def test_command_refuses_to_overwrite_with_worse(
    found: dict[str, Any], golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: Any
) -> None:
    better = copy.deepcopy(merged(golden, found))
    better["gaps"][1]["gap"] = -1.0
    monkeypatch.setattr(compare_splits, "GOLDEN", tmp_path / "golden.json")
    monkeypatch.setattr(compare_splits, "document", lambda models: found)
    compare_splits.GOLDEN.write_bytes(canonical_bytes(better))
    assert compare_splits.main(["--model", "sd15", "--update"]) == 1
    assert "got worse" in capsys.readouterr().err
    assert read_json(compare_splits.GOLDEN, 1_000_000) == better
    compare_splits.GOLDEN.unlink()
    assert compare_splits.main(["--model", "sd15", "--update"]) == 0
    assert compare_splits.main(["--model", "sd15"]) == 0
