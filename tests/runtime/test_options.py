"""EngineOptions: numbers that make no sense are refused before anything starts."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from runtime.errors import InputError
from runtime.options import EngineOptions


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("threads", 10**6, "expected a whole number from 0 to 1024"),
        ("threads", -1, "expected a whole number from 0 to 1024"),
        ("threads", True, "expected a whole number from 0 to 1024"),
        ("warmup", 0, "expected a whole number from 1 to 10000"),
        ("microbatches", 0, "expected a whole number from 1 to 65536"),
        ("microbatches", 1.5, "expected a whole number from 1 to 65536"),
        ("step_timeout_s", math.inf, "expected a number from 1e-06 to 1e"),
        ("step_timeout_s", math.nan, "expected a number from"),
        ("startup_timeout_s", -1.0, "expected a number from"),
        ("startup_timeout_s", 1e30, "expected a number from"),
        ("step_timeout_s", "300", "expected a number from"),
        ("transport", "pigeons", "expected one of 'processes', "),
        ("transport", ["threads"], "expected one of"),
        ("predictor", "cubic", "expected one of None, 'hold', "),
        ("mode", "sync", "expected one of None, 'lookahead', "),
        ("kept_graphs", 0, "expected a whole number from 1 on"),
        ("kept_trajectories", None, "expected a whole number from 1 on"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(option: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{option} is {value!r}; {expected}")):
        EngineOptions(**{option: value})


def test_what_is_in_range_is_taken() -> None:
    assert EngineOptions(threads=0, warmup=None, step_timeout_s=0.001).threads == 0
    assert EngineOptions(warmup=7, microbatches=4, threads=1024, startup_timeout_s=1e7).warmup == 7


@pytest.mark.parametrize("quality", [math.nan, math.inf, 0, -1, True, "best", "", None, 10**400])
def test_what_is_no_quality_is_refused(quality: Any) -> None:
    with pytest.raises(InputError, match="quality is indistinguishable, good, off or a PSNR in dB above 0"):
        EngineOptions(quality=quality)
