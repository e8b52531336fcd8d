"""The ways in which branches share a step."""

from __future__ import annotations

import pytest

from partitioner.errors import UsageError
from partitioner.fleet import Device, Fleet
from partitioner.models.call_rows import CallRows
from partitioner.planning.branching import Branching, check_asked, even_branchings, uneven_branchings


def step_of(rows: int, calls: int = 1) -> CallRows:
    return CallRows(rows, range(1, rows + 1), calls)


def fleet_of(*speeds: float) -> Fleet:
    return tuple(Device(f"speed{speed:g}", 1e12, 100.0, 0.0, speed) for speed in speeds)


@pytest.mark.parametrize(
    ("step", "devices", "expected"),
    [
        (step_of(1), 8, [(1, (1,))]),
        (step_of(8), 4, [(1, (8,)), (1, (4, 4)), (1, (2, 2, 2, 2))]),
        (step_of(3), 4, [(1, (3,)), (1, (1, 1, 1))]),
        (step_of(2, calls=2), 3, [(1, (2,)), (1, (1, 1)), (2, (2,))]),
        (step_of(1, calls=3), 8, [(1, (1,)), (2, (1,)), (3, (1,))]),
        (step_of(1, calls=4), 8, [(1, (1,)), (2, (1,)), (4, (1,))]),
        (CallRows(4, (4, 2)), 4, [(1, (4,)), (1, (2, 2))]),
    ],
)
def test_every_even_way_is_listed(step: CallRows, devices: int, expected: list[tuple[int, tuple[int, ...]]]) -> None:
    assert [(b.streams, b.rows) for b in even_branchings(step, devices)] == expected


@pytest.mark.parametrize(
    ("step", "speeds", "asked", "expected"),
    [
        (step_of(8), (3, 5), None, [(5, 3)]),
        (step_of(8), (1, 1, 1), None, [(3, 3, 2)]),
        (step_of(8), (1, 1), None, []),
        (step_of(8), (1, 1, 1, 1), 3, [(3, 3, 2)]),
        (step_of(2), (1, 5), None, []),  # both rows are done sooner on the fast one
        (step_of(4), (9, 9, 1), None, []),  # nothing for the slow one: two even branches
        (step_of(4), (9, 9, 1), 3, [(2, 1, 1)]),
        (step_of(6, calls=2), (2, 1, 2, 1), None, [(2, 2, 1, 1), (4, 2)]),
        (CallRows(8, (8, 4)), (3, 5), None, []),
        (CallRows(12, (4, 8, 12)), (1, 2.1), None, [(8, 4)]),  # four frames of each image belong together
        (CallRows(12, (4, 8, 12)), (1, 1, 1, 1), 2, [(8, 4)]),
    ],
)
def test_rows_go_with_the_speed_of_devices(
    step: CallRows, speeds: tuple[float, ...], asked: int | None, expected: list[tuple[int, ...]]
) -> None:
    assert [branching.rows for branching in uneven_branchings(step, fleet_of(*speeds), asked)] == expected


def test_streams_take_turns_with_the_groups_of_branches() -> None:
    branching = Branching((2, 1), streams=2, calls_per_step=3)
    assert (branching.branches, branching.calls, branching.is_even) == (4, 2, False)
    assert [branching.calls_of(branch) for branch in range(4)] == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("step", "asked", "message"),
    [
        (step_of(8), 9, "a step of toy makes one call of 8 rows; use --branches auto or 1 to 8"),
        (step_of(1, calls=4), 3, "a step of toy makes 4 calls of one row; use --branches auto or 1, 2, 4"),
        (step_of(1), 2, "toy has one branch: a step of toy makes one call of one row, which cannot be divided; use"),
        (CallRows(2, (2,), whole="they are tied"), 2, "one call of 2 rows, which cannot be divided; they are tied"),
        (CallRows(8, (8, 4), whole="tied"), 4, "one call of 8 rows; tied; use --branches auto or 1, 2"),
        (step_of(8), 5, "5 branches need 5 devices at least, and there are 4"),
    ],
)
def test_what_cannot_be_shared_so_is_refused(step: CallRows, asked: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_asked("toy", step, 4, asked)
    assert message in str(caught.value)
    check_asked("toy", step, 4, 1)
    check_asked("toy", CallRows(8, (8, 4), whole="tied"), 4, 2)
    check_asked("toy", step, 4, None)
