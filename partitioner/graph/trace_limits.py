"""TraceLimits: a trace that takes long says so, and one that would take for ever ends with an error."""

from __future__ import annotations

import logging
import time

from partitioner.errors import TraceError

MOST_NODES = 65_536  # a plan file has room for half of them; the largest denoiser known has 13,066
MOST_SECONDS = 900.0
TELL_EVERY_S = 30.0

_log = logging.getLogger("partitioner")


class TraceLimits:
    """Looks at the time of one trace, which begins when this is made."""

    def __init__(self, model: str) -> None:
        """Begin. model: what is traced, for messages."""
        self._model = model
        self._began = time.monotonic()
        self._told = self._began
        self._calls = 0

    def look(self) -> None:
        """To be called wherever a module is called.

        Raises:
            TraceError: The trace has taken MOST_SECONDS.
        """
        self._calls += 1
        now = time.monotonic()
        if now - self._began > MOST_SECONDS:
            raise TraceError(
                f"tracing {self._model} was ended after {MOST_SECONDS:g} s and {self._calls} calls of modules: its "
                "configuration makes more of them than any plan can place"
            )
        if now - self._told > TELL_EVERY_S:
            self._told = now
            _log.warning(
                "tracing %s goes on: %d calls of modules in %d s so far", self._model, self._calls, now - self._began
            )


def check_nodes(count: int) -> None:
    """Refuse a graph that grows beyond any plan, before it fills the memory. count: of its nodes so far.

    Raises:
        TraceError: There are more than MOST_NODES.
    """
    if count > MOST_NODES:
        raise TraceError(f"the denoiser's graph has more than {MOST_NODES} nodes, which no plan file has room for")
