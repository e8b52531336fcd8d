"""Fixtures of the runtime's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def trace_once() -> Iterator[None]:
    """For ``usefixtures``: the engines of a test file share their traces."""
    from tools.trace_once import traced_once  # imports torch, which only some files need

    with traced_once():
        yield
