"""Turns: one thread at a time uses an engine, in the process that started it, and none waits for itself.

Users' code runs in the middle of an engine's work wherever Python lets it: signal handlers, hooks, handlers of log
records, and finalizers of objects, which the garbage collector calls in any thread, the engine's own among them. What
it asks of an engine there cannot wait for that work to end.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from runtime.errors import EngineBusy, OtherProcess

T = TypeVar("T")

_here = threading.local()  # at_work: whether this thread is in the middle of an engine's work


class EngineThread(threading.Thread):
    """A thread of an engine's own; it ends with the engine, or with the program."""

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


def at_engine_work() -> bool:
    """Whether this thread is in the middle of an engine's work, which must not wait for an engine, this or another."""
    return getattr(_here, "at_work", False) or isinstance(threading.current_thread(), EngineThread)


def later(work: Callable[[], object], name: str) -> None:
    """Do something in a thread of its own, which the program's end waits for."""
    with contextlib.suppress(RuntimeError):  # the program is at its end, which does what is to be done
        threading.Thread(target=work, name=name).start()


class Turns:
    """Whose turn it is to use an engine.

    Args:
        limit_s: how long a thread waits for another's turn to end.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._owner = os.getpid()
        self._lock = threading.RLock()  # is taken, and known as taken by this thread, in one
        self._taken = False
        self._count = 0

    @property
    def is_owner(self) -> bool:
        """Whether this process is the one that started the engine."""
        return os.getpid() == self._owner

    def check_process(self, what: str) -> None:
        """Refuse a process that was forked: it has copies of the connections to the ranks, and none of the threads.

        Args:
            what: is asked of the engine.

        Raises:
            OtherProcess: this is another process than the one that started the engine.
        """
        if not self.is_owner:
            raise OtherProcess(
                f"{what} in process {os.getpid()}, which was forked from the engine's, process {self._owner}: only "
                "that one can use it. Do it there, or start an engine in a process that is not forked "
                '(multiprocessing.get_context("spawn"))'
            )

    def take(self, what: str, work: Callable[[], T]) -> T:
        """Do a piece of work in a turn of its own, when it is its turn; returns its value.

        Args:
            what: the work is, for errors.
            work: what to do with the engine.

        Raises:
            OtherProcess: this process has been forked from the engine's.
            EngineBusy: this very thread has its turn already, or another's does not end.
        """
        self.check_process(what)
        self._await(what)
        before = getattr(_here, "at_work", False)
        try:
            if self._taken:  # by this thread, for it has the lock
                raise EngineBusy(
                    f"{what} in the middle of a call of the same thread, as from a signal handler, a hook or a "
                    "finalizer: it would wait for itself. Do it between calls"
                )
            try:
                self._taken = _here.at_work = True
                self._count += 1
                return work()
            finally:
                self._taken, _here.at_work = False, before
        finally:
            self._lock.release()

    def _await(self, what: str) -> None:
        count = self._count
        while not self._lock.acquire(timeout=min(self._limit_s, threading.TIMEOUT_MAX)):
            if self._count == count:  # of several threads each has its turn
                raise EngineBusy(
                    f"{what} has waited {self._limit_s:g} s for a call of another thread, which does not end; if that "
                    "waits for this thread in turn, do this in the other one, between calls"
                )
            count = self._count
