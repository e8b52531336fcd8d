"""EngineOptions: numbers that make no sense are refused before anything starts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from runtime.errors import InputError
from runtime.options import EngineOptions


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("threads", 10**6, "expected 0 to 1024"),
        ("threads", -1, "expected 0 to 1024"),
        ("threads", True, "expected 0 to 1024"),
        ("warmup", 0, "expected 1 or more"),
        ("microbatches", 0, "expected 1 or more"),
        ("microbatches", 1.5, "expected 1 or more"),
        ("kept_graphs", 0, "expected 1 or more"),
        ("kept_trajectories", None, "expected 1 or more"),
        ("step_timeout_s", math.inf, "expected seconds, above 0 and at most 1e"),
        ("step_timeout_s", math.nan, "expected seconds"),
        ("startup_timeout_s", -1.0, "expected seconds"),
        ("startup_timeout_s", 1e30, "expected seconds"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(option: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError, match=f"{option} is {value!r}; {expected}".replace("+", r"\+")):
        EngineOptions(**{option: value})


def test_what_is_in_range_is_taken() -> None:
    assert EngineOptions(threads=0, warmup=None, step_timeout_s=0.001).threads == 0
    assert EngineOptions(warmup=7, microbatches=4, threads=1024, startup_timeout_s=1e7).warmup == 7
