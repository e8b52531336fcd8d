"""Failure: the first one wins, a suspicion gives way to its cause, and everyone who waits is told."""

from __future__ import annotations

import threading

import pytest

from runtime.errors import EngineError
from runtime.ranks import failure as module
from runtime.ranks.failure import Failure


def test_the_first_failure_wins_and_all_listeners_are_told() -> None:
    failure, told = Failure(), []
    failure.add_listener(told.append)
    first = EngineError("first")
    failure.fail(first)
    failure.fail(EngineError("second"))
    failure.add_listener(told.append)
    assert told == [first, first], "also one that comes later"
    with pytest.raises(EngineError) as caught:
        failure.check()
    assert caught.value is first


def test_a_suspicion_is_the_failure_only_where_no_cause_is_reported_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUSPICION_S", 0.0)
    failure = Failure()
    failure.suspect(EngineError("a connection broke"))
    failure.settle()
    assert str(failure.error) == "a connection broke"
    monkeypatch.setattr(module, "SUSPICION_S", 60.0)
    failure = Failure()
    failure.suspect(EngineError("a connection broke"))
    failure.settle()
    assert failure.error is None
    failure.fail(EngineError("rank 1 has died"))
    failure.settle()
    assert str(failure.error) == "rank 1 has died"


def test_who_waits_is_woken_by_a_failure() -> None:
    failure = Failure()
    threading.Timer(0.05, failure.fail, (EngineError("it"),)).start()
    assert failure.wait_for(lambda: False, timeout_s=60)
    with pytest.raises(EngineError, match="it"):
        failure.await_cause()
    assert not Failure().wait_for(lambda: False, timeout_s=0.01)


def test_after_the_end_nothing_is_a_failure() -> None:
    failure = Failure()
    failure.close()
    failure.fail(EngineError("a rank has ended"))
    failure.check()
