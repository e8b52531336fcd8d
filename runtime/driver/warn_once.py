"""warn_once: a warning that users of an engine need to read only once."""

from __future__ import annotations

import logging

_LOGGER = logging.getLogger("runtime")


def warn_once(warned: set[str], message: str, kind: str | None = None) -> None:
    """Log a warning, unless it or one of its kind was logged before.

    Args:
        warned: what was, which it joins.
        message: a sentence or two.
        kind: messages of one kind may differ; None: the message is its own.

    >>> warned = {"idle"}
    >>> warn_once(warned, "rank 1 did nothing", "idle")
    """
    if (kind or message) not in warned:
        warned.add(kind or message)
        _LOGGER.warning(message)
