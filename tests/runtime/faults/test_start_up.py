"""Ranks that die or hang while they start; ports; and the end of the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import StartupError
from tests.support import warm
from tests.support.engines import equal
from tests.support.traces import is_gone, listening, rank_processes
from tests.support.trouble import DEADLINE_S, engine_for, fragile, plan_for, trajectory, wait_until

pytestmark = pytest.mark.processes(forked=False)

FRAGILE = fragile()
ROOT = Path(__file__).parents[3]


def _at_first_sight(action: Callable[[int], None]) -> threading.Thread:
    """Do something to the first rank as soon as its process is there."""

    def watch() -> None:
        until = time.monotonic() + 60
        while not rank_processes() and time.monotonic() < until:
            time.sleep(0.005)
        action(rank_processes()[0])  # the look that found one may have come too early for one before it

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_rank_that_dies_while_starting_is_named() -> None:
    """Fault 5."""
    plan = plan_for(FRAGILE, 3)
    killer = _at_first_sight(lambda rank: os.kill(rank, signal.SIGKILL))
    begin = time.monotonic()
    with pytest.raises(StartupError, match=r"rank 1: its process \d+ was killed by signal 9 .* while starting"):
        engine_for(FRAGILE, plan)
    assert time.monotonic() - begin < DEADLINE_S
    killer.join()
    assert not rank_processes()
    # and the next start in this program works
    with engine_for(FRAGILE, plan, exact=True) as engine:
        assert equal(trajectory(engine), trajectory(FRAGILE))


def test_a_rank_that_hangs_while_starting_is_named_at_the_deadline() -> None:
    """Fault 5."""
    plan = plan_for(FRAGILE)
    stopper = _at_first_sight(lambda rank: os.kill(rank, signal.SIGSTOP))
    begin = time.monotonic()
    with pytest.raises(StartupError, match=r"rank 1 was not connected within 5 s.*--startup-timeout"):
        engine_for(FRAGILE, plan, startup_timeout_s=DEADLINE_S)
    assert DEADLINE_S <= time.monotonic() - begin < DEADLINE_S + 2
    stopper.join()


def test_a_program_that_is_no_python_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 5."""
    plan = plan_for(FRAGILE)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StartupError, match=r"rank 1: its process \d+ ended with status 1 while starting"):
        engine_for(FRAGILE, plan)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(StartupError, match=r"rank 1: its process cannot be started: .*/nowhere/python"):
        engine_for(FRAGILE, plan)


def test_ranks_on_one_machine_need_no_port() -> None:
    """Fault 14. There is none that could be in use: two engines run side by side."""
    plan = plan_for(FRAGILE)
    with engine_for(FRAGILE, plan, exact=True) as one, engine_for(FRAGILE, plan, exact=True) as other:
        ranks = rank_processes()
        assert len(ranks) == 2
        assert not listening([os.getpid(), *ranks])
        assert equal(trajectory(one), trajectory(other))


DRIVER = """
import signal, sys
phase = sys.argv[1]
from tests.support.trouble import call_until_it_fails, engine_for, fragile, plan_for, trajectory

class Terminated(BaseException):
    pass

def terminate(*_):
    raise Terminated

signal.signal(signal.SIGTERM, terminate)
denoiser = fragile()
plan = plan_for(denoiser, 3)
print("starting", flush=True)
try:
    with engine_for(denoiser, plan, exact=phase == "warm-up") as engine:
        trajectory(engine)
        print("running", flush=True)
        call_until_it_fails(engine, begin=6)
except KeyboardInterrupt:
    sys.exit(130)
except Terminated:
    sys.exit(143)
"""


@pytest.mark.parametrize(
    ("phase", "number", "status", "anew"),
    [
        ("start", signal.SIGKILL, -9, True),
        ("warm-up", signal.SIGKILL, -9, False),
        ("async", signal.SIGKILL, -9, False),
        ("async", signal.SIGINT, 130, True),
        ("async", signal.SIGTERM, 143, False),
    ],
)
def test_ranks_end_with_their_driver(phase: str, number: signal.Signals, status: int, anew: bool) -> None:
    """Fault 4, and fault 1 of rank 0, which is the driver."""
    when = "starting" if phase == "start" else "running"
    command: list[str] = ["-c", DRIVER, phase]
    options: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        subprocess.Popen([sys.executable, *command], text=True, **options) if anew else warm.start(command, **options)
    ) as driver:
        assert driver.stdout is not None
        assert driver.stderr is not None
        while driver.stdout.readline().strip() != when:
            assert driver.poll() is None, driver.stderr.read()
        wait_until(lambda: len(rank_processes(driver.pid)) == 2)
        ranks = rank_processes(driver.pid)
        begin = time.monotonic()
        driver.send_signal(number)
        try:
            while not all(map(is_gone, ranks)):
                assert time.monotonic() - begin < 5
                time.sleep(0.01)
            assert driver.wait(timeout=60) == status  # on a busy machine the end of the interpreter alone takes seconds
        finally:
            driver.kill()
        assert driver.stderr.read() == ""
