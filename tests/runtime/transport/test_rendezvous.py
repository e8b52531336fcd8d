"""Rendezvous: what one rank sets the others find, until the deadline or a failure."""

from __future__ import annotations

import threading

import pytest

from runtime.transport.rendezvous import Rendezvous, driver_key


def test_what_is_set_is_announced_and_found_by_those_who_wait() -> None:
    other = Rendezvous(lambda _key, _value: None, timeout_s=60)
    one = Rendezvous(other.put, timeout_s=60)
    late = threading.Timer(0.05, one.set, ("address", b"here"))
    late.start()
    assert not other.check(["address"])
    other.wait(["address"])
    assert other.get("address") == one.get("address") == b"here"


def test_a_key_that_nobody_sets_is_named_at_the_deadline() -> None:
    with pytest.raises(TimeoutError, match="no rank has set address in time"):
        Rendezvous(lambda _key, _value: None, timeout_s=0.01).get("address")


def test_a_failure_reaches_those_who_wait() -> None:
    store = Rendezvous(lambda _key, _value: None, timeout_s=60)
    threading.Timer(0.05, store.fail, (RuntimeError("rank 1 has died"),)).start()
    with pytest.raises(ConnectionError, match="rank 1 has died"):
        store.get("address")


def test_every_restart_of_a_job_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first = driver_key()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert driver_key() != first
