"""Which rank is named where ranks wait for each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from runtime.ranks.diagnosis import diagnose
from runtime.ranks.rank_report import Report


def a_report(**changes: Any) -> Report:
    known: dict[str, Any] = {
        "steps": 5, "step": 5, "busy": True, "waiting_for": None, "sent_bytes": 0, "send_seconds": 0.0,
        "wait_seconds": 0.0, "parameter_bytes": 0, "resident_bytes": 0,
    }  # fmt: skip
    return Report(**{**known, **changes})


def waiting(value: str, sender: int) -> Report:
    return a_report(waiting_for=(value, sender))


CASES: dict[str, tuple[Mapping[int, Report], int, str | None, str]] = {
    "computes": ({0: waiting("a", 1), 1: waiting("b", 2), 2: a_report(step=7)}, 2, "b", "it is still computing step 7"),
    "idle": ({0: waiting("a", 1), 1: a_report(busy=False)}, 1, "a", "it has done step 5 and has nothing to do"),
    "not begun": ({0: waiting("a", 1), 1: a_report(step=None)}, 1, "a", "it has not begun its first step"),
    "silent": ({0: waiting("a", 2), 1: a_report()}, 2, "a", "it does not answer"),
    "each other": ({0: waiting("a", 1), 1: waiting("b", 0), 2: a_report()}, 1, "a", "wait for each other"),
    "the driver": ({0: a_report(), 1: waiting("a", 0), 2: waiting("a", 0)}, 0, None, "it is still computing step 5"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_end_of_the_chain_is_named(case: str) -> None:
    reports, rank, value, what = CASES[case]
    error = diagnose(reports, [2, 1, 0], 5.0)
    assert (error.rank, error.value) == (rank, value)
    assert error.component == 2 - rank
    assert what in str(error)
    assert "No end of the step within 5 s" in str(error)
    if rank:
        assert f"waits for %{value} of rank {rank}" in str(error)
    else:
        assert "rank 0 waits for nobody" in str(error)
    assert f"rank 2: {'5' if 2 in reports else '?'}" in str(error)


def test_a_circle_of_waits_has_an_end() -> None:
    reports = {rank: waiting("a", (rank + 1) % 4) for rank in range(4)}
    error = diagnose(reports, [3, 2, 1, 0], 5.0)
    assert "wait for each other" in str(error)
    assert str(error).count("waits for %a") == 4
