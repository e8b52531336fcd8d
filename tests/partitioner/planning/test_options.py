"""partitioner.planning.options: what contradicts itself is refused, and what is left out has a value."""

from __future__ import annotations

from typing import Any

import pytest

from partitioner.errors import UsageError
from partitioner.planning.options import PlanOptions, default_warmup


@pytest.mark.parametrize(
    "options",
    [
        {"branches": 0},
        {"period": 0},
        {"period": 65},
        {"warmup": 0},
        {"memory_limit_bytes": 0.0},
        {"memory_limit_bytes": float("nan")},
        {"period": 2, "mode": "lookahead"},
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PlanOptions(**options)


def test_warm_up_fills_the_chain() -> None:
    assert [default_warmup(components, "async") for components in (1, 2, 4, 8)] == [1, 4, 4, 8]
    assert [default_warmup(components, "lookahead") for components in (1, 2, 8)] == [1, 2, 8]
