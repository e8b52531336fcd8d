"""alone_with: one thread at a time has to do with a module whose tensors it exchanges, or must see as they are.

A trace puts fake tensors into a module and changes functions of torch, for its time; an engine that is started, called
or closed looks at the module's tensors, and gives them other memory. Neither may see the other's work by halves.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from partitioner.errors import TraceError

if TYPE_CHECKING:
    from torch import nn

Parts = frozenset[int]
LIBRARIES: Parts = frozenset([-1])  # the functions of torch and of others that a trace changes
LIMIT_S = 900.0  # as long as a trace may take

_changed = threading.Condition()
_busy: list[tuple[int, Parts]] = []  # threads, and what each is alone with


def parts_of(module: nn.Module) -> Parts:
    """What a module consists of; it shares parts with its submodules, its shallow copies and theirs."""
    return frozenset(id(part._parameters) for part in module.modules())


@contextmanager
def alone_with(parts: Parts) -> Iterator[None]:
    """Inside the block no other thread is alone with any of these parts; may be nested, with fewer parts.

    Raises:
        TraceError: another thread was for LIMIT_S.

    >>> layer = __import__("torch").nn.Linear(2, 2)
    >>> with alone_with(parts_of(layer)), alone_with(parts_of(layer)):
    ...     works_alone()
    True
    >>> works_alone()
    False
    """
    me = threading.get_ident(), parts
    try:
        with _changed:
            if not _changed.wait_for(lambda: _is_free(*me), LIMIT_S):
                raise TraceError(
                    f"another thread has traced this module for {LIMIT_S:g} s; if it waits for a call of the module in "
                    "this thread, start engines and make plans where nothing waits for them"
                )
            _busy.append(me)
        yield
    finally:
        with _changed:
            for index, entry in enumerate(_busy):
                if entry is me:
                    del _busy[index]
                    break
            _changed.notify_all()


def works_alone() -> bool:
    """Whether this thread is alone with something, and so must not wait for another that is."""
    return any(thread == threading.get_ident() for thread, _ in _busy)


def _is_free(me: int, parts: Parts) -> bool:
    return all(thread == me or parts.isdisjoint(others) for thread, others in _busy)


def _begin_anew() -> None:
    """In a process that was forked: it has none of the threads that were at work."""
    global _changed
    _changed = threading.Condition()
    _busy[:] = [entry for entry in _busy if entry[0] == threading.get_ident()]


os.register_at_fork(after_in_child=_begin_anew)
