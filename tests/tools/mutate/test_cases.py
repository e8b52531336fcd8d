"""Mutated plans, profiles, folders and weights: every command ends as documented, in seconds, without a traceback.

Some are run in the slow suite, and 500 of each kind by ``python -m tools.mutate``.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tools.mutate.cases import KINDS, Invocation, Originals, make_originals, run_case, wrong_with
from tools.mutate.forked import Limits, RunEnd, run_forked

LIMITS = Limits()
SEED = 20  # other ones than the command's own


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    """The command's own."""
    return make_originals(tmp_path_factory.mktemp("all") / "originals")


def check(kind: str, numbers: range, originals: Originals, folder: Path) -> None:
    made = [run_case(kind, number, SEED, originals, folder / "case", LIMITS) for number in numbers]
    outcomes = [outcome for each in made for outcome in each]
    assert [
        f"{kind} {one.number}: {one.command.name}: {one.wrong}: {one.what}: {one.ended.output[-2000:]}"
        for one in outcomes
        if one.wrong
    ] == []
    assert {one.ended.code for one in outcomes} != {0}  # else nothing of what was mutated was looked at


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_some_mutations_end_as_documented(kind: str, originals: Originals, tmp_path: Path) -> None:
    check(kind, range(4, 8), originals, tmp_path)


def ended(code: int = 0, output: str = "", **more: object) -> RunEnd:
    touched = () if code else ("out.png",)
    return RunEnd(code, output, **{"cpu_s": 0.1, "wall_s": 0.1, "memory_bytes": 10, "touched": touched, **more})  # type: ignore[arg-type]


SENTENCE = "run-plan: error: it is wrong"


@pytest.mark.parametrize(
    ("how", "wrong"),
    [
        (ended(), ""),
        (ended(output="a warning\nrun-plan: 2 ranks ready\n"), ""),
        (ended(3, f"a warning\n{SENTENCE}\n"), ""),
        (ended(3, f"{SENTENCE}\nWhat to do: something else\n"), ""),
        (ended(3, "run-plan: it is wrong"), "0 sentences at exit code 3, or something after it"),
        (ended(3, f"{SENTENCE}\n{SENTENCE}"), "2 sentences at exit code 3, or something after it"),
        (ended(3, f"{SENTENCE}\n and more"), "1 sentences at exit code 3, or something after it"),
        (ended(0, SENTENCE), "1 sentences at exit code 0, or something after it"),
        (ended(3, f"{SENTENCE} \x1b[2J"), "what a terminal obeys instead of showing it"),
        (ended(3, SENTENCE, result="a table"), "a result at exit code 3"),
        (ended(1, "run-plan: error: not foreseen"), "exit code 1"),
        (ended(-9), "exit code -9"),
        (ended(2, SENTENCE), ""),
        (ended(5, SENTENCE), "exit code 5"),
        (ended(3, f"{SENTENCE}: MemoryError"), "more memory than there may be"),
        (ended(3, f"Traceback (most recent call last)\n{SENTENCE}"), "a traceback"),
        (ended(touched=("out.png", "tmpx1")), "files left, changed or missing: out.png, tmpx1"),
        (ended(touched=()), "files left, changed or missing: out.png"),
        (ended(3, SENTENCE, touched=("out.png",)), "files left, changed or missing: out.png"),
        (ended(processes=2), "2 processes left"),
        (ended(cpu_s=11.0), "11 s of processor time, 0 s in all"),
        (ended(wall_s=130.0), "0 s of processor time, 130 s in all"),
        (ended(memory_bytes=2_000_000_000), "2.0 GB"),
    ],
)
def test_what_is_wrong_is_seen(how: RunEnd, wrong: str) -> None:
    from runtime.cli import main

    assert wrong_with("plans", Invocation(main, (), "out.png"), how, LIMITS) == wrong


def wait_and_fill(arguments: Sequence[str]) -> int:
    """A command: takes memory, time of the processor, or just time, and ends in some way."""
    (what,) = arguments
    if what == "memory":
        print(len(bytearray(200 << 20)), file=sys.stderr)
    elif what == "raise":
        raise ValueError("as a defect does")
    elif what == "exit":
        sys.exit(4)
    elif what == "sleep":
        time.sleep(60)
    elif what == "leave":
        print("a result")
        tempfile.mkstemp(prefix="left-")
        Path("given").write_text("changed")
        if os.fork() == 0:
            time.sleep(60)
    return 3


@pytest.mark.parametrize(("what", "code"), [("memory", 3), ("raise", 1), ("exit", 4), ("sleep", -9)])
def test_a_forked_command_is_measured_and_ended(what: str, code: int, tmp_path: Path) -> None:
    how = run_forked(wait_and_fill, [what], tmp_path, Limits(wall_s=0.5 if what == "sleep" else 60.0))
    assert how.code == code
    assert (how.memory_bytes > 190 << 20) == (what == "memory")
    assert ("ValueError: as a defect does" in how.output) == (what == "raise")
    assert (how.result, how.touched, how.processes) == ("", (), 0)


def test_what_a_forked_command_leaves_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.mutate.forked._SECONDS_TO_END", 0.1)
    (tmp_path / "given").touch()
    how = run_forked(wait_and_fill, ["leave"], tmp_path, Limits())
    assert (how.code, how.result, how.processes) == (3, "a result\n", 1)
    assert how.touched[0] == "given"
    assert how.touched[1].startswith("left-")
    assert psutil.Process().children() == []
