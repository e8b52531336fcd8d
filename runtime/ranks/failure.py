"""Failure: the first failure of any rank, made known to every thread of the driver that waits for one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NoReturn

from runtime.errors import EngineError
from runtime.worker.waiting import pieces

SUSPICION_S = 1.0  # the end of a process may be noticed this long after its connections broke
_LONGEST_S = 0.5  # between two looks at the suspicions


class Failure:
    """What ended the ranks, if anything has. Thread-safe.

    The first failure wins. An error that may be only the consequence of another one is *suspected*: it becomes the
    failure ``SUSPICION_S`` later, unless its cause has been reported by then. (When a rank's process dies, the other
    ranks may notice their broken connections before the driver notices the end of the process.)

    ``changed`` is notified of failures; its users notify it of what else threads wait for.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.error: EngineError | None = None
        self.closed = False
        self._suspected: list[tuple[float, EngineError]] = []  # when it becomes the failure, in monotonic seconds
        self._listeners: list[Callable[[BaseException], None]] = []

    def add_listener(self, listener: Callable[[BaseException], None]) -> None:
        """Call ``listener`` with the failure: when there is one, or now if there is one already."""
        with self.changed:
            self._listeners.append(listener)
            error = self.error
        if error is not None:
            listener(error)

    def fail(self, error: EngineError) -> None:
        """This is the failure, if it is the first; everyone who waits is told."""
        with self.changed:
            if self.closed or self.error is not None:
                return
            self.error = error
            listeners = list(self._listeners)
            self.changed.notify_all()
        for listener in listeners:
            listener(error)

    def suspect(self, error: EngineError) -> None:
        """This is the failure, unless its cause is reported within ``SUSPICION_S``."""
        with self.changed:
            self._suspected.append((time.monotonic() + SUSPICION_S, error))

    def next_look_s(self) -> float:
        """How many seconds from now ``settle`` should be called again, at the latest."""
        with self.changed:
            now = time.monotonic()
            return max(0.0, min([_LONGEST_S, *(due - now for due, _ in self._suspected)]))

    def settle(self) -> None:
        """Make the suspicions that are due the failure, the earliest first."""
        with self.changed:
            now = time.monotonic()
            due = [error for when, error in self._suspected if when <= now]
            self._suspected = [entry for entry in self._suspected if entry[0] > now]
        for error in due:
            self.fail(error)

    def close(self) -> None:
        """From now on the ranks end on purpose: nothing is a failure any more."""
        with self.changed:
            self.closed = True

    def wait_for(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until ``done`` holds or there is a failure; False after ``timeout_s`` without either."""
        with self.changed:
            return any(
                self.changed.wait_for(lambda: done() or self.error is not None, timeout=piece_s)
                for piece_s in pieces(timeout_s)
            )

    def check(self) -> None:
        """Raise the failure, if there is one."""
        if self.error is not None:
            raise self.error

    def await_cause(self) -> NoReturn:
        """Raise the failure that the caller has met a consequence of, as soon as it is known."""
        self.wait_for(lambda: False, 5 * SUSPICION_S)
        self.check()
        raise EngineError("a connection to a rank broke")
