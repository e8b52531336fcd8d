"""Work done in a forked process beside this one."""

from __future__ import annotations

import os
import threading

import pytest

from partitioner.process import beside


def test_the_value_comes_from_another_process() -> None:
    waiting = beside(os.getpid)
    assert waiting() != os.getpid()


def test_a_large_value_comes_whole() -> None:
    assert beside(lambda: b"x" * 5_000_000)() == b"x" * 5_000_000


def test_an_error_is_met_here() -> None:
    def fail() -> None:
        raise KeyError(os.getpid())

    waiting = beside(fail)
    with pytest.raises(KeyError, match=str(os.getpid())):
        waiting()


def test_a_value_that_cannot_be_sent_is_made_here() -> None:
    assert callable(beside(lambda: lambda: 1)())


def test_a_child_that_hangs_is_replaced() -> None:
    parent = os.getpid()

    def hang() -> int:
        if os.getpid() != parent:
            threading.Event().wait()
        return os.getpid()

    assert beside(hang, timeout_s=0.2)() == parent


def test_a_process_with_threads_is_not_forked() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert beside(os.getpid)() == os.getpid()
    finally:
        stop.set()
        thread.join()
