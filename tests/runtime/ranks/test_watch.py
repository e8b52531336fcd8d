"""Watch: events that are not done in time are told once, with the ranks whose work they are."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from runtime.ranks.watch import Watch
from tests.support.trouble import wait_until


class Done:
    """An event that is done, or never will be, or that a failed device cannot tell."""

    def __init__(self, done: bool | None) -> None:
        self.done = done
        self.asked = threading.Event()

    def query(self) -> bool:
        self.asked.set()
        if self.done is None:
            raise RuntimeError("the device has failed")
        return self.done


@pytest.mark.parametrize("hangs", [True, False])
def test_what_is_not_done_in_time_is_told_with_its_ranks(hangs: bool) -> None:
    told: list[list[int]] = []
    events: list[Any] = [Done(True), Done(None), Done(not hangs), Done(True), Done(not hangs)]
    watch = Watch(0.0 if hangs else 60.0, told.append)
    for rank, event in enumerate(events):
        watch.add(rank % 3, event)
    if hangs:
        wait_until(lambda: bool(told))
        assert told[0][-1] == 2
    else:
        assert events[-1].asked.wait(5)
    watch.close()
    assert len(told) == hangs


def test_a_watch_is_closed_while_it_waits() -> None:
    told: list[list[int]] = []
    watch = Watch(60.0, told.append)
    event: Any = Done(False)
    watch.add(1, event)
    assert event.asked.wait(5)
    watch.close()
    assert not told
