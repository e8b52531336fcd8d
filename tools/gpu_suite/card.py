"""Card: parts that run at once time things one after the other, the most worthy first."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

POLL_S = 0.02
STDERR = 2  # its file descriptor


class Card:
    """The right to use the device alone. Whoever holds it and hangs is ended, with its threads' stacks in its log.

    Args:
        folder: the suite's, where the lock and the names of those that wait are.
        turn: of the part; smaller ones come first.
    """

    def __init__(self, folder: Path, turn: int) -> None:
        self._turn = turn
        self._folder = folder / "card"
        self._folder.mkdir(exist_ok=True)
        self._lock = -1
        self._limit_s = 0.0

    @contextlib.contextmanager
    def held(self, limit_s: float) -> Iterator[None]:
        """Have the device alone inside the block. The process is ended where it holds it for longer than limit_s."""
        self._limit_s = limit_s
        self._take()
        try:
            yield
        finally:
            self._give()

    def give_way(self) -> None:
        """Let a more worthy part that waits have the device first; for a holder, between two measurements."""
        if self.is_wanted():
            self._give()
            self._take()

    def _take(self) -> None:
        mine = self._folder / f"{self._turn:03d}-{os.getpid()}"
        mine.touch()
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            while True:
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                if not self.is_wanted():
                    break
                fcntl.flock(self._lock, fcntl.LOCK_UN)
                time.sleep(POLL_S)
        finally:
            mine.unlink()
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=STDERR)

    def _give(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)

    def is_wanted(self) -> bool:
        """Whether a more worthy part waits; one that was killed while it waited does not count."""
        waiting = (path.name.split("-") for path in self._folder.glob("*-*"))
        return any(int(turn) < self._turn and Path("/proc", process).exists() for turn, process in waiting)
