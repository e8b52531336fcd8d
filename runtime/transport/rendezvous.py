"""Rendezvous: how the processes of a job find each other."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed.rendezvous import rendezvous

from partitioner.graph.torch_private import Store


def launcher_store(timeout_s: float) -> Store:
    """The store that the processes which torchrun has started share. timeout_s: to reach it, and for each read."""
    store, _rank, _world = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    return store  # type: ignore[no-any-return]


def driver_key() -> str:
    """The key in torchrun's store under which the driver leaves its address, anew after each restart of the job."""
    return f"diffusion-partitioner/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


class Rendezvous(Store):
    """A store in which the ranks of a gloo group find each other's addresses, without a server or a port.

    What is set here is announced to the other ranks over their connections to the driver, and put into theirs.

    Args:
        announce: sends a key and its value to the other ranks.
        timeout_s: from now, for ``get``.
    """

    def __init__(self, announce: Callable[[str, bytes], None], timeout_s: float) -> None:
        super().__init__()
        self._announce = announce
        self._deadline = time.monotonic() + timeout_s
        self._known: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def put(self, key: str, value: bytes) -> None:
        """Put in what another rank has set."""
        with self._changed:
            self._known[key] = value
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Make everyone who waits here, now or later, raise ConnectionError."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def set(self, key: str, value: Any) -> None:
        self.put(key, bytes(value))
        self._announce(key, bytes(value))

    def get(self, key: str) -> bytes:
        with self._changed:
            self._changed.wait_for(
                lambda: key in self._known or self._failure is not None,
                timeout=max(0.0, self._deadline - time.monotonic()),
            )
            if self._failure is not None:
                raise ConnectionError(str(self._failure))
            if key not in self._known:
                raise TimeoutError(f"no rank has set {key} in time")
            return self._known[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self.get(key)

    def check(self, keys: list[str]) -> bool:
        with self._changed:
            return all(key in self._known for key in keys)
