"""partitioner.planning.request: devices are parsed, and what is wrong is found before anything is traced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from partitioner.costs.model import CostModel, GivenCosts
from partitioner.errors import UsageError
from partitioner.fleet import known_device
from partitioner.graph.ir import TracedGraph
from partitioner.models.call_rows import CallRows
from partitioner.planning.options import PlanOptions, Progress
from partitioner.planning.request import PlanRequest
from partitioner.planning.sampling_setup import SamplingSetup
from partitioner.staleness.edge_errors import EdgeErrors
from profiles.quality_profile import QualityProfile


class Untraced:
    """A denoiser that must not be traced."""

    name = "toy"

    revision = None
    beside = ()

    def __init__(self, step: CallRows, divides_unasked: bool = True) -> None:
        self.step = step
        self.divides_unasked = divides_unasked

    def trace(self, rows: Iterable[int], progress: Progress) -> dict[int, TracedGraph]:
        raise AssertionError

    def edge_errors(self, whole: TracedGraph, progress: Progress) -> EdgeErrors | None:
        raise AssertionError


HALVES, ONE_ROW, TWO_CALLS = CallRows(2, (1, 2)), CallRows(), CallRows(calls=2)


def request(devices: Any = 2, step: CallRows = HALVES, unasked: bool = True, **options: Any) -> PlanRequest:
    return PlanRequest(Untraced(step, unasked), devices, CostModel("l40s"), PlanOptions(**options))


@pytest.mark.parametrize(
    ("devices", "expected"),
    [(2, "l40s l40s"), ("2", "l40s l40s"), ("h200, a100", "h200 a100-80g"), ((known_device("cpu"),), "cpu")],
)
def test_devices_are_parsed_once(devices: Any, expected: str) -> None:
    assert " ".join(device.name for device in request(devices).fleet) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"devices": 0}, "--devices 0: expected 1 to 1024"),
        ({"devices": "z9"}, "no device 'z9'"),
        ({"step": ONE_ROW, "branches": 2}, "toy has one branch: a step of toy makes one call of one row, which cannot"),
        ({"devices": 1, "branches": 2}, "2 branches need 2 devices at least, and there are 1"),
        ({"branches": 3}, "--branches 3: a step of toy makes one call of 2 rows; use --branches auto or 1, 2"),
        (
            {"step": TWO_CALLS, "branches": 4},
            "--branches 4: a step of toy makes 2 calls of one row; use --branches auto or 1, 2",
        ),
        (
            {"step": CallRows(4, (4,), 2, whole="they are tied"), "branches": 4},
            "2 calls of 4 rows; they are tied; use --branches auto or 1, 2",
        ),
        ({"branches": 0}, "branches is 0; expected a whole number from 1 to"),
        ({"refine": True}, "--refine measures components; give --profile"),
    ],
)
def test_what_is_wrong_is_found_at_once(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        request(**arguments)


def test_costs_of_ones_own_give_no_device_by_number() -> None:
    with pytest.raises(UsageError, match="no device 'my board'"):
        PlanRequest(Untraced(ONE_ROW), 2, GivenCosts(lambda graph: None, "my board"))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [(1, (2,)), (1, (1, 1))]),
        ({"step": ONE_ROW}, [(1, (1,))]),
        ({"devices": 1}, [(1, (2,))]),
        ({"branches": 1}, [(1, (2,))]),
        ({"branches": 2}, [(1, (1, 1))]),
        ({"step": TWO_CALLS}, [(1, (1,)), (2, (1,))]),
        ({"unasked": False}, [(1, (2,))]),
        ({"unasked": False, "branches": 2}, [(1, (1, 1))]),
    ],
)
def test_what_branches_may_share(arguments: dict[str, Any], expected: list[Any]) -> None:
    assert [(b.streams, b.rows) for b in request(**arguments).branchings] == expected


def test_quality_is_asked_for_the_sampling_setup() -> None:
    assert request().advisor is None
    setup = SamplingSetup(20, "DDIMScheduler")
    asked = PlanRequest(Untraced(HALVES), 2, CostModel("l40s"), sampling=setup, quality=QualityProfile.load())
    assert asked.advisor is not None
    assert asked.advisor.sampling == setup
