"""Forked processes: of a program that has an engine, as users' programs fork them."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_a_child(act: Callable[[], None]) -> None:
    """Act in a forked process, and fail where it raises."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
