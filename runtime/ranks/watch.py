"""Watch: notices that a device does not do in time what was queued on it, while nobody may be there to wait for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from runtime.devices.stream import Event
from runtime.turns import EngineThread

_LOOK_S = 0.05  # between two looks at an event that is not done


class Watch:
    """Looks after events in a thread of its own.

    Args:
        timeout_s: how long after it was recorded an event may take.
        late: is told, once, which ranks' work is not done by then.
    """

    def __init__(self, timeout_s: float, late: Callable[[list[int]], None]) -> None:
        self._timeout_s = timeout_s
        self._late = late
        self._changed = threading.Condition()
        self._queued: deque[tuple[int, Event, float]] = deque()  # rank, event, when it is late
        self._closed = False
        self._thread = EngineThread(self._look, "device watch")
        self._thread.start()

    def add(self, rank: int, event: Event) -> None:
        """Look after the event behind what a rank has queued so far."""
        with self._changed:
            self._queued.append((rank, event, time.monotonic() + self._timeout_s))
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _look(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._queued)
                if self._closed:
                    return
                _, event, late = self._queued[0]
            if _is_done(event):
                with self._changed:
                    self._queued.popleft()
            elif time.monotonic() > late:
                with self._changed:
                    ranks = sorted({rank for rank, event, _ in self._queued if not _is_done(event)})
                self._late(ranks)
                return
            else:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, timeout=_LOOK_S)


def _is_done(event: Event) -> bool:
    try:
        done: bool = event.query()  # type: ignore[no-untyped-call]
    except RuntimeError:
        return True  # the device has failed, and tells whoever uses it next
    return done
