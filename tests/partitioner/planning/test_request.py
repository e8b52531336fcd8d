"""partitioner.planning.request: devices are parsed, and what is wrong is found before anything is traced."""

from __future__ import annotations

from typing import Any

import pytest

from partitioner.costs.model import CostModel, GivenCosts
from partitioner.errors import UsageError
from partitioner.fleet import known_device
from partitioner.planning.expected_quality import SamplingSetup
from partitioner.planning.options import PlanOptions, Progress
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromGraphs
from profiles.quality_profile import QualityProfile


class Untraced:
    """A denoiser that must not be traced."""

    name = "toy"

    def __init__(self, has_halves: bool) -> None:
        self.has_halves = has_halves

    def trace(self, halves: bool, progress: Progress) -> FromGraphs:
        raise AssertionError


def request(devices: Any = 2, halves: bool = True, **options: Any) -> PlanRequest:
    return PlanRequest(Untraced(halves), devices, CostModel("l40s"), PlanOptions(**options))


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
        ({"halves": False, "branches": 2}, "toy has one branch"),
        ({"devices": 1, "branches": 2}, "two devices"),
        ({"refine": True}, "--refine measures components; give --profile"),
    ],
)
def test_what_is_wrong_is_found_at_once(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        request(**arguments)


def test_costs_of_ones_own_give_no_device_by_number() -> None:
    with pytest.raises(UsageError, match="no device 'my board'"):
        PlanRequest(Untraced(False), 2, GivenCosts(lambda graph: None, "my board"))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, True),
        ({"halves": False}, False),
        ({"devices": 1}, False),
        ({"branches": 1}, False),
        ({"branches": 2}, True),
    ],
)
def test_a_half_is_traced_where_two_branches_are_possible(arguments: dict[str, Any], expected: bool) -> None:
    assert request(**arguments).traces_halves == expected


def test_quality_is_asked_for_the_sampling_setup() -> None:
    assert request().advisor is None
    setup = SamplingSetup(20, "DDIMScheduler")
    asked = PlanRequest(Untraced(True), 2, CostModel("l40s"), sampling=setup, quality=QualityProfile.load())
    assert asked.advisor is not None
    assert asked.advisor.sampling == setup
