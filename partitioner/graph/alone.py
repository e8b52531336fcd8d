"""alone_with: one thread at a time has to do with a module whose tensors it exchanges, or must see as they are.

A trace puts fake tensors into a module and changes functions of torch, for its time; an engine that is started, called
or closed looks at the module's tensors, and gives them other memory. Neither may see the other's work by halves.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from partitioner.errors import TraceError

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")
Parts = frozenset[int]
LIBRARIES: Parts = frozenset([-1])  # the functions of torch and of others that a trace changes
LIMIT_S = 900.0  # as long as a trace may take
LOOK_S = 0.002  # how often who waits looks

_lock = threading.RLock()  # again by who has it, for the garbage collector may end an engine in the middle of anything
_busy: dict[object, tuple[int, Parts]] = {}  # of each piece of work its thread, and what that is alone with


def parts_of(module: nn.Module) -> Parts:
    """What a module consists of; it shares parts with its submodules, its shallow copies and theirs."""
    return frozenset(id(part._parameters) for part in module.modules())


def alone_with(parts: Parts, work: Callable[[], T]) -> T:
    """Do a piece of work while no other thread is alone with any of these parts; may be nested, with fewer parts.

    Ctrl-C ends it like any error, wherever it comes: a block of ``with`` is not left where it comes as that ends, and
    everybody else would wait for this thread.

    Returns:
        What the work gives.

    Raises:
        TraceError: another thread was for LIMIT_S.

    >>> layer = __import__("torch").nn.Linear(2, 2)
    >>> alone_with(parts_of(layer), lambda: alone_with(parts_of(layer), works_alone))
    True
    >>> works_alone()
    False
    """
    mine = object()
    until = time.monotonic() + LIMIT_S
    try:
        while not _begin(mine, parts):
            if time.monotonic() > until:
                raise TraceError(
                    f"another thread has traced this module for {LIMIT_S:g} s; if it waits for a call of the module in "
                    "this thread, start engines and make plans where nothing waits for them"
                )
            time.sleep(LOOK_S)
        return work()
    finally:
        _busy.pop(mine, None)  # first of all: Python looks for signals after it, not before


def works_alone() -> bool:
    """Whether this thread is alone with something, and so must not wait for another that is."""
    return threading.get_ident() in [thread for thread, _ in list(_busy.values())]


def _begin(mine: object, parts: Parts) -> bool:
    """Whether a piece of work of this thread can begin, which it then has."""
    me = threading.get_ident()
    with _lock:
        if [others for thread, others in list(_busy.values()) if thread != me and parts & others]:
            return False
        _busy[mine] = me, parts
        return True


def _begin_anew() -> None:
    """In a process that was forked: it has none of the threads that were at work."""
    global _lock
    _lock = threading.RLock()
    for mine, (thread, _) in list(_busy.items()):
        if thread != threading.get_ident():
            del _busy[mine]


os.register_at_fork(after_in_child=_begin_anew)
