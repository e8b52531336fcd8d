"""Branches, periods and boundary tensors of a plan must hold together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from partitioner.errors import PlanError
from partitioner.plan.plan import Plan
from tests.support.chain_plans import chain, document, make_plan


def test_boundaries_must_agree_with_the_placement(tmp_path: Path) -> None:
    base = document()
    assert len(base["boundaries"]) == 2
    for change, expected in (
        ({"source": 1}, "source"),
        ({"readers": [0]}, "readers"),
        ({"readers": [1, 1]}, "readers"),
        ({"readers": [9]}, "component 9 of 3"),
        ({"size_bytes": 5}, "size_bytes"),
        ({"dtype": "object"}, "dtype"),
        ({"key": "blocks.77/gelu.0"}, "not placed"),
        ({"shape": [2**40] * 16}, "size_bytes"),
    ):
        changed = copy.deepcopy(base)
        changed["boundaries"][0].update(change)
        with pytest.raises(PlanError, match=expected):
            Plan.parse(changed)
    twice = copy.deepcopy(base)
    twice["boundaries"].append(twice["boundaries"][0])
    with pytest.raises(PlanError, match="twice"):
        Plan.parse(twice)


@pytest.mark.parametrize(
    ("mode", "periods", "expected"),
    [
        ("async", [2, 2, 2], r"periods ends with 2, expected 1: component 2 makes the output"),
        ("async", [1, 1, 3], r"periods ends with 3, expected 1"),
        ("lookahead", [2, 2, 1], r"period is 2, expected 1: look-ahead recomputes"),
        ("async", [2, 3, 1], None),
    ],
)
def test_every_step_has_an_output(mode: str, periods: list[int], expected: str | None) -> None:
    changed = document(make_plan(chain(), mode=mode)) | {"periods": periods, "period": max(periods)}
    if expected is None:
        assert list(Plan.parse(changed).periods) == periods
    else:
        with pytest.raises(PlanError, match=expected):
            Plan.parse(changed)


def test_lookahead_refuses_a_boundary_that_goes_back() -> None:
    base = document(make_plan(chain(), mode="async"))
    base["boundaries"][1]["readers"] = [0, 2]
    Plan.parse(base)
    with pytest.raises(PlanError, match="goes back"):
        Plan.parse({**base, "mode": "lookahead"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"branches": 3, "streams": 2, "calls_per_step": 2},
            "branches is 3, expected a multiple of streams, which is 2",
        ),
        ({"branches": 2, "branch_rows": [5]}, "branch_rows has 1 entries, expected none or 2: one for each branch"),
        (
            {"branches": 4, "streams": 2, "calls_per_step": 2, "branch_rows": [1, 1, 1, 1]},
            "branch_rows has 4 entries, expected none or 2",
        ),
        ({"branches": 2, "streams": 2}, "calls_per_step is 1, expected at least streams, which is 2"),
    ],
)
def test_streams_and_shares_must_fit_the_branches(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(PlanError, match=expected):
        make_plan(chain(), 1, **changes)
