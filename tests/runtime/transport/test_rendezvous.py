"""Rendezvous: the addresses that ranks set are found by the others, until the deadline or a failure."""

from __future__ import annotations

import threading

import pytest

from runtime.transport.rendezvous import Rendezvous

HERE = "127.0.0.1", 4711


def test_what_is_set_is_announced_and_found_by_those_who_wait() -> None:
    other = Rendezvous(lambda _address: None, timeout_s=60)
    one = Rendezvous(lambda address: other.put(1, address), timeout_s=60)
    late = threading.Timer(0.05, one.set, (1, HERE))
    late.start()
    assert other.get(1) == one.get(1) == HERE


def test_a_rank_that_says_nothing_is_named_at_the_deadline() -> None:
    with pytest.raises(TimeoutError, match="rank 1 has not said where it can be reached"):
        Rendezvous(lambda _address: None, timeout_s=0.01).get(1)


def test_a_failure_reaches_those_who_wait() -> None:
    meeting = Rendezvous(lambda _address: None, timeout_s=60)
    threading.Timer(0.05, meeting.fail, (RuntimeError("rank 1 has died"),)).start()
    assert not meeting.failed
    with pytest.raises(ConnectionError, match="rank 1 has died"):
        meeting.get(1)
    assert meeting.failed


def test_whatever_holds_is_looked_at_again_when_told_to() -> None:
    meeting = Rendezvous(lambda _address: None, timeout_s=60)
    come: list[int] = []

    def come_in() -> None:
        come.append(1)
        meeting.notify()

    threading.Timer(0.05, come_in).start()
    meeting.wait_for(lambda: bool(come), "nobody has come")
