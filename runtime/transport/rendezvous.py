"""Rendezvous: how the ranks of an engine find each other's addresses, without a server or a port that is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from runtime.transport.handshake import HostAndPort


class Rendezvous:
    """The addresses of the ranks: what one sets is told to the others over their connections to the driver.

    Args:
        announce: sends this rank's address to the other ranks.
        timeout_s: from now, for whatever is waited for here.

    until: the end of that time, in monotonic seconds.
    """

    def __init__(self, announce: Callable[[HostAndPort], None], timeout_s: float) -> None:
        self.until = time.monotonic() + timeout_s
        self._announce = announce
        self._known: dict[int, HostAndPort] = {}
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def set(self, rank: int, address: HostAndPort) -> None:
        """Say where this rank can be reached."""
        self.put(rank, address)
        self._announce(address)

    def put(self, rank: int, address: HostAndPort) -> None:
        """Put in where another rank can be reached, as it has said."""
        with self._changed:
            self._known[rank] = address
            self._changed.notify_all()

    def get(self, rank: int) -> HostAndPort:
        """Where a rank can be reached; waits for it to say so.

        Raises:
            TimeoutError, ConnectionError: see ``wait_for``.
        """
        self.wait_for(lambda: rank in self._known, f"rank {rank} has not said where it can be reached")
        return self._known[rank]

    def wait_for(self, holds: Callable[[], bool], missing: str) -> None:
        """Wait until something holds; it is asked again after every ``notify``.

        Raises:
            TimeoutError: it does not in time; the message is ``missing``.
            ConnectionError: the start has failed elsewhere.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: holds() or self._failure is not None, timeout=max(0.0, self.until - time.monotonic())
            )
            if self._failure is not None:
                raise ConnectionError(str(self._failure))
            if not holds():
                raise TimeoutError(missing)

    def notify(self) -> None:
        """Have everyone who waits here look again."""
        with self._changed:
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Make everyone who waits here, now or later, raise ConnectionError."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    @property
    def failed(self) -> bool:
        return self._failure is not None
