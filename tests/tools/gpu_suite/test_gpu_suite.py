"""The suite runs its parts in order within the time, goes on where it stopped, and measures on a CPU, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from profiles.cost_profile import CostProfile
from tools.gpu_suite import __main__ as gpu_suite
from tools.gpu_suite import run_part as gpu_parts
from tools.gpu_suite.denoisers import SMALL
from tools.gpu_suite.parts import DENOISERS, SuitePart, plan_parts
from tools.gpu_suite.suite import GpuSuite, run_command


class Machine:
    """Runs nothing: what a part's command is told to do happens at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun: list[tuple[str, float]] = []
        self.broken: set[str] = set()
        self.slow: set[str] = set()

    def run(self, command: Sequence[str], limit_s: float, log: Path) -> int | None:
        (name,) = command
        self.begun.append((name, limit_s))
        log.write_text(f"log of {name}")
        if name in self.slow:
            return None
        if name in self.broken:
            return 1
        (self.folder / f"{name}.json").write_text("{}")
        return 0

    def suite(self, *limits: float) -> GpuSuite:
        parts = [SuitePart(chr(ord("a") + i), (chr(ord("a") + i),), limit) for i, limit in enumerate(limits)]
        return GpuSuite(parts, self.folder, self.run, lambda _: None)


def names(machine: Machine) -> str:
    return "".join(name for name, _ in machine.begun)


def test_parts_run_in_order_and_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.suite(10, 20, 30).run_for(1000)
    assert machine.begun == [("a", 10), ("b", 20), ("c", 30)]
    machine.suite(10, 20, 30).run_for(1000)
    assert names(machine) == "abc", "their documents are there"


def test_what_failed_is_tried_once_more_after_the_others(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.broken = {"a"}
    suite = machine.suite(10, 10, 10)
    suite.run_for(1000)
    assert names(machine) == "abca"
    assert suite.table().split() == ["failed", "a", "done", "b", "done", "c"]
    assert (tmp_path / "a.failed-1.log").read_text() == "log of a"
    suite.run_for(1000)
    assert names(machine) == "abca", "given up"


def test_a_part_that_runs_too_long_failed_but_not_one_that_the_end_cut_short(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.slow = {"a"}
    suite = machine.suite(10)
    suite.run_for(7)
    assert machine.begun[0][1] == pytest.approx(7, abs=0.1)
    assert suite.failures(suite.missing()[0]) == 0
    machine.begun.clear()
    suite.run_for(1000)
    assert machine.begun == [("a", 10), ("a", 10)]
    assert suite.missing() == []


def test_what_cannot_have_half_its_limit_is_not_begun(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.suite(100, 10).run_for(20)
    assert names(machine) == "b", "a shorter part may still fit"


def test_a_command_is_killed_at_its_limit_and_its_output_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sleeper = "print('up', flush=True); import time; time.sleep(600)"
    assert run_command(["timeit", "-n1", "-r1", sleeper], 3.0, log) is None
    assert log.read_text() == "up\n"
    assert run_command(["this"], 60.0, log) == 0
    assert "Zen" in log.read_text()


def test_a_gpu_has_parts_that_a_cpu_has_not(tmp_path: Path) -> None:
    on_gpu = [part.name for part in plan_parts(DENOISERS, "cuda:0", tmp_path)]
    assert on_gpu[:3] == ["tests", "traces", "profile-sd15"]
    assert {f"compiled-{name}" for name in DENOISERS} < set(on_gpu)
    on_cpu = [part.name for part in plan_parts(["small"], "cpu", tmp_path)]
    assert set(on_gpu) - {name.replace("small", "sd15") for name in on_cpu} >= {"tests", "concurrency-sd15"}
    assert on_cpu == ["traces", "profile-small", "components-small", "engine-small", "compiled-small"]


def test_an_unknown_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        gpu_suite.main(["--output", str(tmp_path), "--part", "nonsense"])
    assert end.value.code == 2
    assert "there are tests, traces, profile-sd15" in capsys.readouterr().err


@pytest.mark.slow
def test_the_small_denoiser_is_profiled_and_its_components_timed_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("profile", "components", "engine"):
        arguments = [part, "--denoiser", SMALL, "--device", "cpu", "--output", str(tmp_path)]
        assert gpu_parts.main(arguments) == 0
        assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / f"{part}-small.json").read_text())
    profile = CostProfile.load(tmp_path / "small.eager.profile.json")
    (row,) = json.loads((tmp_path / "profile-small.json").read_text())["profiles"]
    (check,) = profile.checks
    assert (row["signatures"], row["error"]) == (len(profile.signatures), check.error)
    rows = json.loads((tmp_path / "components-small.json").read_text())["rows"]
    assert [row["devices"] for row in rows] == [1, 2, 4, 8]
    for row in rows:
        assert len(row["eager_ms"]) == row["components"]
        assert min(row["eager_ms"]) > 0
        assert row["devices"] == 1 or len(row["predicted_ms"]) == row["components"]
    steps = json.loads((tmp_path / "engine-small.json").read_text())["rows"]
    assert [(row["devices"], row["exact"]) for row in steps] == [(2, True), (2, False), (4, True), (4, False)]
