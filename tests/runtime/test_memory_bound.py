"""bounded_memory: what would take too much is refused, in a sentence, and the process's own limit is back after it."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import nullcontext, suppress

import numpy
import pytest
import torch

from partitioner.errors import UsageError
from partitioner.library import library_call
from runtime.memory_bound import bounded_memory


def work(make: Callable[[int], object], *, by_library: bool) -> None:
    with bounded_memory("it", 10**8), library_call("it cannot be loaded") if by_library else nullcontext():
        make(10**11)


@pytest.mark.parametrize("make", [bytearray, numpy.zeros, torch.zeros])
@pytest.mark.parametrize("by_library", [False, True])
def test_what_takes_too_much_is_refused(make: Callable[[int], object], by_library: bool) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(UsageError, match=r"^it asks for more than 0\.1 GB of memory, and its files have far less; "):
        work(make, by_library=by_library)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_limit_that_is_there_stays_and_other_errors_pass() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (10**11, hard))
    inside = []
    try:
        with suppress(KeyError), bounded_memory("it", 10**12):
            inside.append(resource.getrlimit(resource.RLIMIT_DATA))
            raise KeyError("other")
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert inside == [(10**11, hard)]
