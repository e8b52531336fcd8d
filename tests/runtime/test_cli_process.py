"""run-plan as a process: what it loads for --help, and what a signal leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm
from tests.support.run_plan_home import Home
from tests.support.traces import is_gone, rank_processes

pytestmark = pytest.mark.usefixtures("trace_once")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def test_help_comes_without_loading_torch() -> None:
    code = (
        "import sys, runtime.cli\n"
        "print(runtime.cli.main(['--help']), sorted({'torch', 'diffusers', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert "usage: run-plan" in done.stdout


@dataclass
class Endless:
    """A run-plan that would take very long; driver and ranks: process numbers."""

    process: subprocess.Popen[str]
    ranks: list[int]


@pytest.fixture
def endless(home: Home, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Endless]:
    """run-plan over processes, in a process group of its own, at work on very many steps. Parameter: begun anew."""
    command: list[Any] = [
        "-m", "runtime.cli", home.plan("stable_diffusion"), "--pipeline",
        home.pipeline("stable_diffusion"), "--prompt", "a", "--steps", "999", "--height", "32", "--width", "32",
        "--output", tmp_path / "never.png", "--json",
    ]  # fmt: skip
    words = list(map(str, command))
    options: dict[str, Any] = {
        "cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True,
    }  # fmt: skip
    process = (
        subprocess.Popen([sys.executable, *words], text=True, **options)
        if request.param
        else warm.start(words, **options)
    )
    ranks: list[int] = []
    try:
        assert process.stderr is not None
        said = ""
        while "ranks ready" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        ranks += rank_processes(process.pid)
        time.sleep(0.5)
        yield Endless(process, ranks)
    finally:
        for pid in [process.pid, *ranks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()  # closes its pipes, too


@pytest.mark.processes
@pytest.mark.parametrize(
    ("endless", "number", "to_group", "code", "word"),
    [(True, signal.SIGINT, True, 130, "interrupted"), (False, signal.SIGTERM, False, 143, "terminated")],
    ids=["Ctrl-C", "SIGTERM"],
    indirect=["endless"],
)
def test_a_signal_ends_it_and_every_rank(
    endless: Endless, tmp_path: Path, number: signal.Signals, to_group: bool, code: int, word: str
) -> None:
    process = endless.process
    assert len(endless.ranks) == 1, "the driver has started the other rank"
    for _ in range(5):  # as people press it
        (os.killpg if to_group else os.kill)(process.pid, number)  # a terminal sends Ctrl-C to all of them
        time.sleep(0.03)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-1] == f"run-plan: {word}"
    assert err.count(word) == 1
    assert "Traceback" not in err
    assert all(map(is_gone, endless.ranks))
    assert list(tmp_path.iterdir()) == []
