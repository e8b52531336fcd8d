"""LocalProcess: says how a process has ended, also where its status is not to be had."""

from __future__ import annotations

import os
import subprocess

import pytest

from runtime.ranks.launch import STATUS_TAKEN, LocalProcess


def started(command: str) -> tuple[LocalProcess, int]:
    process = subprocess.Popen(["sh", "-c", command])
    return LocalProcess(process), process.pid


@pytest.mark.parametrize(
    ("command", "how"),
    [("exit 3", "ended with status 3"), ("kill -TERM $$", "was killed by signal 15 (SIGTERM)"), ("", "with status 0")],
)
def test_a_process_that_has_ended_says_how(command: str, how: str) -> None:
    process, _ = started(command)
    assert how in str(process.ending(10))
    process.kill()
    assert how in str(process.ending())


def test_a_process_that_runs_has_not_ended_until_it_is_killed() -> None:
    process, _ = started("exec sleep 1000")
    assert process.ending() is None
    assert process.ending(0.01) is None
    process.kill()
    assert "was killed by signal 9 (SIGKILL" in str(process.ending(10))


def test_a_status_that_somebody_else_has_taken_is_no_zero() -> None:
    process, pid = started("exit 3")
    os.waitpid(pid, 0)
    assert process.ending(10) == STATUS_TAKEN
    process.kill()  # the number may be another process's by now
