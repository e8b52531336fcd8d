"""warn_once: a warning that users of an engine need to read only once."""

from __future__ import annotations

import logging
import re

_LOGGER = logging.getLogger("runtime")
_NUMBER = re.compile(r"\d[\d.,e+-]*")


def warn_once(warned: set[str], message: str, kind: str | None = None) -> None:
    """Log a warning, unless it or one of its kind was logged before.

    Args:
        warned: what was, which it joins.
        message: a sentence or two.
        kind: messages of one kind may differ; None: those that differ in numbers only are of one.

    >>> warned = {"idle"}
    >>> warn_once(warned, "rank 1 did nothing", "idle")
    >>> warned = {"timestep # is none of the scheduler's"}
    >>> warn_once(warned, "timestep 500.5 is none of the scheduler's")
    """
    kind = kind or _NUMBER.sub("#", message)
    if kind not in warned:
        warned.add(kind)
        _LOGGER.warning(message)
