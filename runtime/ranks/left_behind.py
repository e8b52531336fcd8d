"""Ranks left behind: threads and devices that did not end in time. Nobody starts on their devices before they have.

A thread cannot be ended from outside, and neither can a kernel.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

from runtime.devices.stream import DeviceStream
from runtime.errors import StartupError

_LOOK_S = 0.01  # between two looks at whether they have ended
_LOGGER = logging.getLogger("runtime")


@dataclass(frozen=True)
class LeftBehind:
    """A rank that did not end in time.

    Attributes:
        thread: its own; None: the driver's.
        stream: where its work is queued.
        text: says which it is and what it did.
    """

    thread: threading.Thread | None
    stream: DeviceStream
    text: str

    def has_ended(self) -> bool:
        """Whether it has by now."""
        if self.thread is not None and self.thread.is_alive():
            return False
        try:
            return self.stream.end(0.0)
        except RuntimeError:
            return True  # the device has failed, and tells whoever uses it next


_LEFT: list[LeftBehind] = []
_LOCK = threading.RLock()  # the garbage collector may end an engine in the middle of this


def leave_behind(rank: LeftBehind) -> None:
    """Take note of a rank that did not end, and warn of it."""
    with _LOCK:
        _LEFT.append(rank)
    _LOGGER.warning("%s, and is left behind; nothing starts on %s before it has ended", rank.text, rank.stream.device)


def await_devices(devices: Collection[str], timeout_s: float) -> None:
    """Wait until no rank that was left behind is at work on devices any more.

    Args:
        devices: by their names with an index.
        timeout_s: how long at most.

    Raises:
        StartupError: one is even then.
    """
    until = time.monotonic() + timeout_s
    while True:
        with _LOCK:
            _LEFT[:] = [rank for rank in _LEFT if not rank.has_ended()]
            there = [rank for rank in _LEFT if str(rank.stream.device) in devices]
        if not there:
            return
        if time.monotonic() > until:
            raise StartupError(
                f"{there[0].stream.device} is not free: {there[0].text}. Start again when it has ended, in a new "
                "process, or on other devices"
            )
        time.sleep(_LOOK_S)
