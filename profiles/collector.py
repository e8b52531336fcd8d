"""without_collector: Python's garbage collector paused for a while."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the garbage collector inside the block.

    Where millions of objects are made that live on (a JSON document, modules, a trace), looking through them for
    garbage takes a tenth to a half of the time.

    >>> with without_collector():
    ...     gc.isenabled()
    False
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
