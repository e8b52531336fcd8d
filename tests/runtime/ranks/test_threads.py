"""ThreadRanks that stall: the engine ends at its deadline, and the next one starts when the thread has ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.engine import Engine
from runtime.errors import RankStalled, StartupError
from runtime.options import EngineOptions
from runtime.ranks import threads
from runtime.ranks.threads import ThreadRanks
from runtime.worker.segment import Segment
from runtime.worker.worker import Worker
from tests.support.engines import Trajectory, equal, run, toy, toy_plan

pytestmark = pytest.mark.usefixtures("trace_once")

QUICK_STEPS = EngineOptions(transport="threads", step_timeout_s=0.2)
QUICK_START = EngineOptions(transport="threads", startup_timeout_s=0.2)
PATIENT = EngineOptions(transport="threads")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Open it, and what it holds up goes on; it is open when the test ends."""
    monkeypatch.setattr(threads, "_GRACE_S", 0.05)
    opened = threading.Event()
    yield opened
    opened.set()


def holding_up(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, gate: threading.Event) -> None:
    """Have rank 1 wait for the gate in a method."""
    before = getattr(owner, method)

    def held_up(self: Any, *args: Any) -> Any:
        if threading.current_thread().name == "rank 1":
            gate.wait()
        return before(self, *args)

    monkeypatch.setattr(owner, method, held_up)


def test_a_stalled_thread_is_named_and_left_and_the_next_start_waits_for_it(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    denoiser, plan, trajectory = toy(), toy_plan(toy(), 2), Trajectory()
    expected = run(denoiser, plan, trajectory)
    holding_up(monkeypatch, Segment, "__call__", gate)
    with Engine(denoiser, plan, QUICK_STEPS) as engine, pytest.raises(RankStalled, match=r"within 0\.2 s") as caught:
        trajectory.through(engine)
    assert (caught.value.rank, caught.value.component) == (1, 0)
    assert "rank 1 (component 0) has not ended with its engine, after: rank 1" in caplog.text
    with pytest.raises(StartupError, match=r"cpu is not free: rank 1 \(component 0\) has not ended"):
        Engine(denoiser, plan, QUICK_START)
    gate.set()
    with Engine(denoiser, plan, PATIENT) as engine:
        assert equal(trajectory.through(engine), expected)
    assert len([thread for thread in threading.enumerate() if thread.name == "rank 1"]) == 0


def test_a_thread_that_does_not_get_ready_ends_the_start(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding_up(monkeypatch, Worker, "build", gate)
    with pytest.raises(RankStalled, match=r"was not ready within 0\.2 s; .*--startup-timeout") as caught:
        Engine(toy(), toy_plan(toy(), 2), QUICK_START)
    assert caught.value.rank == 1
    gate.set()
    Engine(toy(), toy_plan(toy(), 2), PATIENT).close()


def test_a_thread_that_is_still_at_work_when_its_engine_is_closed_is_waited_for(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rank 1 works for a later call in look-ahead, or for nobody any more."""
    denoiser, plan, trajectory = toy(), toy_plan(toy(), 2, warmup=1), Trajectory(calls=3)
    with Engine(denoiser, plan, PATIENT) as engine:
        for call in range(2):
            engine(**trajectory.inputs(call))
        engine._ranks.wait_loaded()  # until rank 1 has done all that it was told
        holding_up(monkeypatch, Segment, "__call__", gate)
        engine(**trajectory.inputs(2))  # lagged: rank 0 needs nothing of rank 1's present work
        threading.Timer(0.05, gate.set).start()
    assert "left behind" not in caplog.text


def test_calls_do_not_wait_for_graphs_that_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls have other sizes than the plan's, so that the plan's own graph is never run, nor captured."""
    before, wait = Segment.__call__, ThreadRanks._wait_idle
    ran: set[int] = set()
    waited: set[int] = set()

    def noted(segment: Segment, values: Any) -> Any:
        ran.add(id(segment))
        return before(segment, values)

    def counted(ranks: ThreadRanks, timeout_s: float) -> bool:
        waited.add(call)
        return wait(ranks, timeout_s)

    monkeypatch.setattr(Segment, "__call__", noted)
    monkeypatch.setattr(Segment, "is_settled", property(lambda segment: id(segment) in ran))
    monkeypatch.setattr(ThreadRanks, "_wait_idle", counted)
    denoiser, trajectory, call = toy(), Trajectory(calls=5, rows=4), -1
    with Engine(denoiser, toy_plan(denoiser, 2), PATIENT) as engine:
        for call in range(5):
            engine(**trajectory.inputs(call))
    assert ran
    assert waited <= {-1, 0}, "for what is given, and until all has run once"
