"""What a plan's branches are, in words."""

from __future__ import annotations

from typing import Any

import pytest

from partitioner.branch_text import branches_text, weights_text
from partitioner.report import describe
from tests.support.toy_plan import toy_plan


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"branches": 1}, []),
        ({"style": "batch"}, ["2 branches of one row: the halves of guidance"]),
        (
            {"branches": 4, "rows": [2] * 4, "images": 4, "style": "batch"},
            ["4 branches of 2 rows: 4 images x 2 guidance halves"],
        ),
        (
            {"rows": [5, 3], "images": 4, "style": "batch"},
            ["2 branches of 5 and 3 rows: 4 images x 2 guidance halves"],
        ),
        (
            {"branches": 3, "rows": [1] * 3, "style": "batch"},
            ["3 branches of one row: the three parts of guidance"],
        ),
        ({"rows": [256, 256], "style": None}, ["2 branches of 256 rows: the 512 rows of a call"]),
        ({"rows": [1], "streams": 2, "calls": 2}, ["2 branches: guidance in two calls, one each"]),
        ({"rows": [1], "streams": 2, "calls": 3}, ["2 branches: guidance in three calls, by turns"]),
        (
            {"branches": 4, "streams": 2, "calls": 2, "images": 2},
            ["4 branches of one row: 2 images; guidance in two calls, one each"],
        ),
        (
            {"rows": [2], "streams": 2, "calls": 2, "style": "batch"},
            ["2 branches of 2 rows: the two calls of a step, one each"],
        ),
    ],
)
def test_branches_are_told_in_a_sentence(changed: dict[str, Any], expected: list[str]) -> None:
    plan = {"branches": 2, "streams": 1, "rows": [1, 1], "calls": 1, "images": 1, "style": "two-calls"} | changed
    document = plan | {
        "rows_of_branches": plan["rows"],
        "calls_per_step": plan["calls"],
        "guidance_style": plan["style"],
    }
    assert branches_text(document) == expected


def test_weights_are_held_by_each_branch() -> None:
    document = describe(toy_plan(), None)
    assert weights_text(document) == [
        "each branch holds all weights over its 2 components: 12.0 MB in one, 24.0 MB in all"
    ]
    assert weights_text(document | {"branches": 1}) == []
