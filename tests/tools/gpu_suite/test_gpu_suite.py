"""The suite runs its parts by worth within the time, resumes from one file, and measures on a CPU, too."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import profiles
from profiles.cost_profile import CostProfile
from tools.gpu_suite import __main__ as gpu_suite
from tools.gpu_suite import denoisers, environment, figures, packed, results, suite
from tools.gpu_suite import run_part as gpu_parts
from tools.gpu_suite.card import Card
from tools.gpu_suite.denoisers import graphs_of
from tools.gpu_suite.gpu_tests import results_in
from tools.gpu_suite.mps import mps, mps_runs
from tools.gpu_suite.packed import LACKING, pack, unpack
from tools.gpu_suite.parts import DENOISERS, SMALL, SuitePart, plan_parts
from tools.gpu_suite.pipeline_runs import stream_times
from tools.gpu_suite.processes import CommandProcess
from tools.gpu_suite.results import keep_results, unpack_results
from tools.gpu_suite.suite import GpuSuite


@dataclass
class Ended:
    """A process that has come to its end, or one that never does."""

    status: int | None

    def poll(self) -> int | None:
        return self.status

    def end(self) -> None:
        self.status = -9 if self.status is None else self.status


@dataclass
class Machine:
    """Runs nothing: what a part does happens at once."""

    folder: Path
    broken: set[str] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)
    begun: str = ""
    processes: list[Ended] = field(default_factory=list)
    kept: int = 0
    said: list[str] = field(default_factory=list)

    def start(self, part: SuitePart, turn: int, log: Path) -> Ended:
        self.begun += part.name
        log.write_text(f"more\nlog of {part.name}\n")
        if part.name not in self.slow | self.broken:
            (self.folder / f"{part.name}.json").write_text("{}")
        self.processes.append(Ended(None if part.name in self.slow else int(part.name in self.broken)))
        return self.processes[-1]

    def keep(self) -> None:
        self.kept += 1

    def suite(self, *parts: SuitePart, jobs: int = 1) -> GpuSuite:
        return GpuSuite(parts, self.folder, self.start, self.said.append, self.keep, jobs)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "POLL_S", 0.001)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def part(name: str, limit_s: float = 10, least_s: float = 1, after: tuple[str, ...] = ()) -> SuitePart:
    return SuitePart(name, (name,), limit_s, least_s, after)


A, B, C = part("a"), part("b"), part("c")


def test_parts_run_in_order_and_once(machine: Machine) -> None:
    machine.suite(A, B, C).run_for(1000)
    assert machine.begun == "abc"
    assert machine.kept == 4, "after every part, and at the end"
    machine.suite(A, B, C).run_for(1000)
    assert machine.begun == "abc", "their documents are there"


def test_what_failed_is_tried_once_more_after_the_others(machine: Machine) -> None:
    machine.broken = {"a"}
    made = machine.suite(A, B, C)
    made.run_for(1000)
    assert machine.begun == "abca"
    assert made.table().split() == ["failed", "a", "done", "b", "done", "c"]
    assert (machine.folder / "a.failed-1.log").read_text() == "more\nlog of a\n"
    assert [text for text in machine.said if "ended" in text] == ["a: ended with 1 after 0 s: log of a"] * 2
    assert "b: done after 0 s" in machine.said
    made.run_for(1000)
    assert machine.begun == "abca", "given up"


def test_a_part_that_runs_too_long_failed_but_not_one_that_the_end_cut_short(machine: Machine) -> None:
    machine.slow = {"a"}
    long, short = part("a", limit_s=1000, least_s=0), part("a", limit_s=0.01, least_s=0)
    made = machine.suite(long)
    made.run_for(0.02)
    assert [process.status for process in machine.processes] == [-9], "killed"
    assert made.failures(long) == 0
    machine.suite(short).run_for(1)
    assert machine.begun == "aaa"
    assert made.missing() == []


def test_what_needs_more_time_than_is_left_is_not_begun(machine: Machine) -> None:
    machine.suite(part("a", least_s=50), part("b", least_s=5)).run_for(20)
    assert machine.begun == "b", "a shorter part may still fit"


def test_several_parts_run_at_once_but_none_before_those_that_it_needs(machine: Machine) -> None:
    machine.slow = {"a"}
    parts = [part("a", limit_s=0.05), part("b", after=("a",)), part("c"), part("d", after=("nothing that is run",))]
    machine.suite(*parts, jobs=2).run_for(10)
    assert machine.begun.startswith("acd"), "b needs a, which runs until its limit"
    assert set(machine.begun) == set("abcd"), "and it is tried although a failed"


def test_a_part_that_hangs_says_where_and_ends_with_all_that_it_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True)"
    process = CommandProcess(["timeit", "-n1", "-r1", "-s", child, "import time; time.sleep(600)"], log, {})
    while not log.read_text().endswith("\n"):
        assert process.poll() is None
        time.sleep(0.01)
    process.end()
    assert process.poll() is not None
    started, said = log.read_text().split("\n", 1)
    assert "most recent call first" in said
    while Path("/proc", started, "cmdline").exists() and Path("/proc", started, "cmdline").read_bytes():
        time.sleep(0.01)  # killed, though perhaps not gone yet


def test_the_most_worthy_of_those_that_wait_has_the_device_next(tmp_path: Path) -> None:
    had = []

    def use(turn: int) -> None:
        with Card(tmp_path, turn).held(60):
            had.append(turn)

    holder = Card(tmp_path, 5)
    with holder.held(60):
        threads = [threading.Thread(target=use, args=(turn,)) for turn in (9, 7, 3)]
        for thread in threads:
            thread.start()
        while len(list((tmp_path / "card").glob("*-*"))) < 3:
            time.sleep(0.001)
        holder.give_way()
        assert had == [3], "one that is more worthy than the holder, which then has it again"
    for thread in threads:
        thread.join()
    assert had == [3, 7, 9]


def test_who_was_killed_while_he_waited_keeps_nobody_waiting(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    card = Card(tmp_path, 5)
    (tmp_path / "card" / f"001-{ended.pid}").touch()
    with card.held(60):
        card.give_way()


def test_who_hangs_with_the_device_is_ended(tmp_path: Path) -> None:
    code = "import sys, time\nfrom pathlib import Path\nfrom tools.gpu_suite.card import Card\n"
    code += "with Card(Path(sys.argv[1]), 0).held(0.2):\n    time.sleep(600)"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr


def test_results_travel_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "a.json").write_text("{}")
    (here / "b.failed-1.log").write_text("x" * 300_000 + "the end")
    (here / "sdxl.graphs.pickle.gz").write_bytes(b"is made again")
    (here / "large.trace.json.gz").write_bytes(gzip.compress(os.urandom(5000)))
    monkeypatch.setattr(results, "MAX_BYTES", 4000)
    keep_results(here, tmp_path / "results.tar.gz")
    unpack_results(tmp_path / "results.tar.gz", there)
    assert sorted(path.name for path in there.iterdir()) == ["a.json", "b.failed-1.log"]
    assert (there / "b.failed-1.log").read_text().endswith("xthe end")
    with tarfile.open(tmp_path / "results.tar.gz") as tar:
        left_out = tar.extractfile("left-out.txt")
        assert left_out is not None
        assert left_out.read() == b"large.trace.json.gz"


def test_only_results_are_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "hostile.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("../outside.json", "sdxl.graphs.pickle.gz", "code.py", "a.json"):
            tar.addfile(tarfile.TarInfo(name))
    folder = tmp_path / "folder"
    folder.mkdir()
    unpack_results(archive, folder)
    assert [path.name for path in folder.iterdir()] == ["a.json"]
    assert not (tmp_path / "outside.json").exists()


def test_what_is_packed_can_be_imported_where_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in LACKING:
        with zipfile.ZipFile(wheels / f"{name.replace('-', '_')}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"packed_{name.replace('-', '_')}.py", "here = True")
            needs = "numpy>=1", "pydantic-core", "lost; sys_platform == 'win32'", "lost; extra == 'more'"
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", "".join(f"Requires-Dist: {need}\n" for need in needs))
    monkeypatch.setattr(packed.subprocess, "run", lambda *_, **__: None)  # compiles them, too, in seconds
    said = pack(tmp_path / "packed", wheels, [SMALL])
    assert f"8 wheels for Python 3.12; small traced by torch {packed.version('torch')}; 0.0 MB" in said
    folder = tmp_path / "folder"
    folder.mkdir()
    packages = unpack(tmp_path / "packed", folder)
    monkeypatch.syspath_prepend(str(packages))
    assert __import__("packed_torch_tb_profiler").here
    assert (folder / f"{SMALL}.graphs.pickle.gz").exists()
    with zipfile.ZipFile(wheels / "diffusers-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("diffusers-1.0.dist-info/METADATA", "Requires-Dist: Lost_Package>=3; python_version < '3.13'\n")
    with pytest.raises(ValueError, match="diffusers needs lost-package, of which"):
        pack(tmp_path / "again", wheels, [])
    for folder_ in (wheels, tmp_path / "again" / "wheels"):
        (folder_ / "diffusers-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ValueError, match="no wheel of diffusers"):
        pack(tmp_path / "again", wheels, [])


def test_wheels_are_downloaded_for_the_machine_in_the_versions_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []
    monkeypatch.setattr(packed.subprocess, "run", lambda command, check: commands.append(" ".join(command)))
    with pytest.raises(ValueError, match="no wheel of"):
        pack(tmp_path / "packed", None, [])
    (command,) = commands
    assert "--python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64" in command
    assert f" pydantic-core=={packed.version('pydantic-core')} " in command


def test_a_gpu_has_parts_that_a_cpu_has_not(tmp_path: Path) -> None:
    on_gpu = [part.name for part in plan_parts(DENOISERS, "cuda:0", tmp_path)]
    assert on_gpu[:4] == ["environment", "tests", "profile-sdxl", "components-sdxl"]
    assert {"engine-sdxl-mps-4", "engine-sdxl-tiny-threads-4", "concurrency-sdxl", "profile-flux"} < set(on_gpu)
    on_cpu = [part.name for part in plan_parts([SMALL], "cpu", tmp_path)]
    assert "tests" not in on_cpu
    assert not any("mps" in name or "shares" in name or "concurrency" in name for name in on_cpu)
    for names, device in ((DENOISERS, "cuda:0"), ([SMALL], "cpu")):
        parts = plan_parts(names, device, tmp_path)
        assert len({part.name for part in parts}) == len(parts)
        for number, needing in enumerate(parts):
            assert set(needing.after) <= {part.name for part in parts[:number]}
            assert needing.command[1] in gpu_parts.MODULES


def test_wrong_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["--output", str(tmp_path / "r.tar.gz"), "--part", "nonsense"], "there are environment, tests, profile-sdxl"),
        ([], "--output is needed"),
    ):
        assert gpu_suite.main(arguments) == 2
        assert said in capsys.readouterr().err


def test_the_command_lists_what_its_file_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "profile-small.json").write_text("{}")
    keep_results(tmp_path, tmp_path / "r.tar.gz")
    arguments = ["--output", str(tmp_path / "r.tar.gz"), "--device", "cpu", "--denoiser", SMALL, "--list"]
    assert gpu_suite.main([*arguments, "--part", "*-small", "--skip", "compiled-*", "--skip", "half-*"]) == 1
    assert capsys.readouterr().out.split() == ["done", "profile-small", "not", "run", "components-small"]


def test_what_became_of_tests_is_read_from_their_output() -> None:
    text = (
        "tests/a.py::test_b[{'x': 1}] PASSED\n[gw3] [ 50%] FAILED tests/a.py::test_c \nFAILED tests/a.py::test_c - x\n"
    )
    assert results_in(text) == {"tests/a.py::test_b[{'x': 1}]": "PASSED", "tests/a.py::test_c": "FAILED"}


def test_the_times_of_streams_overlap_where_both_are_busy() -> None:
    def kernel(stream: int, start: int, length: int) -> dict[str, object]:
        return {"cat": "kernel", "ts": start, "dur": length, "args": {"stream": stream}}

    times = stream_times([kernel(7, 0, 3000), kernel(8, 2000, 2000), kernel(7, 9000, 1000), {"cat": "cpu_op"}])
    assert times["busy_ms"] == {"7": 4.0, "8": 2.0}
    assert (times["any_busy_ms"], times["several_busy_ms"]) == (5.0, 1.0)


def test_there_is_no_service_where_there_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with mps(tmp_path) as there:
        assert not there


def test_programs_that_hang_keep_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia-cuda-mps-control", "nvidia-smi"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\nexec sleep 600\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("tools.gpu_suite.mps.LIMIT_S", 0.1)
    with mps(tmp_path) as there:
        assert not there
        assert not mps_runs(tmp_path)
    monkeypatch.setattr("tools.gpu_suite.environment.LIMIT_S", 0.1)
    assert environment._output(("nvidia-smi",)) == "nothing within 0.1 s"


def test_what_is_called_mps_is_not_measured_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["engine", "mps", "2", "--denoiser", SMALL, "--device", "cpu", "--output", str(tmp_path)]
    assert gpu_parts.main(words) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == [
        {"cuda_graphs": None, "failed": "NVIDIA's MPS does not run here"}
    ]


def test_graphs_that_were_kept_in_another_form_are_traced_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = graphs_of(SMALL, tmp_path)
    assert graphs_of(SMALL, tmp_path) == made
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(denoisers.torch, "__version__", "2.9.1+cpu")
    assert graphs_of(SMALL, tmp_path) == made
    assert "tracing small again, by torch-2.9.1+cpu" in capsys.readouterr().err
    assert graphs_of(SMALL, tmp_path) == made
    assert capsys.readouterr().err == "", "now they are of this torch"


def test_figures_are_read_from_the_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = {
        "profile-wan21-1.3b": {"dtype": "bfloat16", "mode": "eager", "summed_ms": 9.0, "whole_ms": 10.0, "error": -0.1},
        "engine-sdxl-threads-4": {"rows": [{"cuda_graphs": None, "step_ms": 2.0, "failed": "told"}]},
        "engine-sdxl-threads-4.partial": {"rows": []},
        "wan21-1.3b-4.plan": {},
        "pipeline-sdxl.plan": {},
    }
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    keep_results(tmp_path, tmp_path / "r.tar.gz")
    assert figures.main([str(tmp_path / "r.tar.gz")]) == 0
    said = capsys.readouterr().out
    assert "| profile-wan21-1.3b bfloat16 eager | 9.00 | 10.00 | -10.0 % |  |" in said
    assert "| engine-sdxl-threads-4 | where possible |  |  | 2.00 |  |  | told |  |" in said


def test_recorded_profiles_are_named_by_device_and_model(tmp_path: Path) -> None:
    recorded = Path(profiles.__file__).parent / "data" / "h100-sdxl.json"
    (tmp_path / "sdxl.cuda_graph.profile.json").write_bytes(recorded.read_bytes())
    target = tmp_path / "data"
    target.mkdir()
    (row,) = figures.save_profiles(tmp_path, target)
    assert (target / recorded.name).read_bytes() == recorded.read_bytes()
    assert row in (recorded.parent / "README.md").read_text()


@pytest.mark.slow
def test_the_small_denoiser_is_measured_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for words in (["profile"], ["components"], ["engine", "threads", "2"], ["environment"]):
        assert gpu_parts.main([*words, "--denoiser", SMALL, "--device", "cpu", "--output", str(tmp_path)]) == 0
        found[words[0]] = json.loads(capsys.readouterr().out)
        (document,) = tmp_path.glob(f"{words[0]}*.json")
        assert json.loads(document.read_text()) == found[words[0]]
    profile = CostProfile.load(tmp_path / "small.eager.profile.json")
    (check,) = profile.checks
    assert (found["profile"]["signatures"], found["profile"]["error"]) == (len(profile.signatures), check.error)
    assert found["components"]["costs"] == "measured"
    for row in found["components"]["rows"]:
        assert len(row["eager_ms"]) == len(row["predicted_ms"]) == row["components"]
        assert min(row["eager_ms"]) > 0
    (row,) = found["engine"]["rows"]
    assert row["equals_module"]
    assert row["replayed_equals_module"]
    assert 0 < row["difference"] < 10
    assert row["step_ms"] >= row["host_ms"] > 0
    assert found["environment"]["packages"]["torch"]
