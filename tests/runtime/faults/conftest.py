"""Around every fault: what it leaves is nothing. All faults happen in one program, one engine after the other, so that
each also shows that the start after the fault before it works.

The faults are numbered: each test's docstring says which it is about, from Fault 1, a rank that is killed, to Fault 15,
hostile files. What users are told of them is in docs/guides/troubleshooting.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support import warm
from tests.support.traces import nothing_left

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]  # they look into /proc


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    warm.make_ready()  # by the first test, it would be what that leaves
    with nothing_left():
        yield
