"""Schedules as literal grids: which component runs which call, and what it reads."""

from __future__ import annotations

from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.plan.schedule import ComponentRun, Schedule
from tests.support.schedule_grid import schedule_grid


def grid(text: str) -> str:
    """A grid as ``schedule_grid`` prints it, from one that is written with single spaces."""
    lines = (line.split() for line in dedent(text).strip().splitlines())
    return "\n".join(f"{label} " + " ".join(f"{cell:>5}" for cell in cells) for label, *cells in lines)


def test_exact_runs_every_component_at_every_call_and_reads_that_call() -> None:
    schedule = Schedule(3, "exact", 1, (1, 1, 1))
    assert schedule_grid(schedule, range(4)) == grid(
        """
        0: 0 1 2 3
        1: 0 1 2 3
        2: 0 1 2 3
        """
    )
    assert schedule.runs(2) == [
        ComponentRun(0, 2, (2, 2, 2)),
        ComponentRun(1, 2, (2, 2, 2)),
        ComponentRun(2, 2, (2, 2, 2)),
    ]


def test_async_reads_the_call_before_after_the_warm_up() -> None:
    schedule = Schedule(2, "async", 2, (1, 1))
    assert schedule_grid(schedule, range(5)) == grid(
        """
        0: 0 1 2~ 3~ 4~
        1: 0 1 2~ 3~ 4~
        """
    )
    assert schedule.runs(1) == [ComponentRun(0, 1, (1, 1)), ComponentRun(1, 1, (1, 1))]
    assert schedule.runs(2) == [ComponentRun(0, 2, (1, 1)), ComponentRun(1, 2, (1, 1))]
    assert schedule.runs(4) == [ComponentRun(0, 4, (3, 3)), ComponentRun(1, 4, (3, 3))]


def test_a_component_with_a_period_runs_when_it_is_due() -> None:
    schedule = Schedule(3, "async", 2, (2, 3, 1))
    assert schedule_grid(schedule, range(9)) == grid(
        """
        0: 0 1 2~ . 4~ . 6~ . 8~
        1: 0 1 2~ . . 5~ . . 8~
        2: 0 1 2~ 3~ 4~ 5~ 6~ 7~ 8~
        """
    )


def test_what_a_component_with_a_period_began_is_read_a_period_later() -> None:
    """It may compute for as long as its period lasts."""
    schedule = Schedule(2, "async", 2, (2, 1))
    reads = [schedule.runs(call)[-1].reads for call in range(2, 9)]
    #        call:  2       3       4       5       6       7       8
    assert reads == [(1, 1), (1, 2), (2, 3), (2, 4), (4, 5), (4, 6), (6, 7)]


def test_look_ahead_fills_the_pipe_at_the_last_warm_up_call() -> None:
    schedule = Schedule(3, "lookahead", 3, (1, 1, 1), calls=7)
    assert schedule_grid(schedule, range(7)) == grid(
        """
        0: 0 1 2+3+4 5 6 . .
        1: 0 1 2+3 4 5 6 .
        2: 0 1 2 3 4 5 6
        """
    )
    assert ComponentRun(0, 3, (3, 3, 3)) in schedule.runs(2), "all that it reads belongs to the call that it works for"


def test_the_last_calls_are_exact_where_asked_for() -> None:
    schedule = Schedule(3, "lookahead", 3, (1, 1, 1), calls=8, finish=2)
    assert schedule_grid(schedule, range(8)) == grid(
        """
        0: 0 1 2+3+4 5 . . 6 7
        1: 0 1 2+3 4 5 . 6 7
        2: 0 1 2 3 4 5 6 7
        """
    )
    assert [call for call in range(8) if schedule.is_exact(call)] == [0, 1, 2, 6, 7]


def test_look_ahead_without_a_known_end_runs_on() -> None:
    schedule = Schedule(2, "lookahead", 2, (1, 1))
    assert schedule_grid(schedule, range(2, 5)) == grid(
        """
        0: 3 4 5
        1: 2 3 4
        """
    )


@pytest.mark.parametrize("mode", ["exact", "async", "lookahead"])
def test_one_component_lags_behind_nobody(mode: str) -> None:
    schedule = Schedule(1, mode, 1, (1,), calls=4)
    assert schedule_grid(schedule, range(4)) == grid("0: 0 1 2 3")
    assert all(schedule.is_exact(call) for call in range(4))


def test_the_first_call_cannot_lag() -> None:
    with pytest.raises(ValueError, match=r"warmup must be at least 1 .*nothing to read from.*got 0"):
        Schedule(2, "async", 0, (1, 1))


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_async_reads_only_what_has_been_sent_long_enough_ago(components: int, warmup: int, data: st.DataObject) -> None:
    periods = tuple(data.draw(st.lists(st.integers(1, 4), min_size=components, max_size=components)))
    schedule = Schedule(components, "async", warmup, periods)
    began: list[set[int]] = [set() for _ in range(components)]
    for call in range(20):
        runs = schedule.runs(call)
        for run in runs:
            assert run.call == call
            for source, read in enumerate(run.reads):
                if schedule.is_exact(call):
                    assert read == call
                else:
                    assert read in began[source]
                    assert read < warmup or read + periods[source] <= call
        for run in runs:
            began[run.component].add(call)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 12), st.integers(0, 3))
def test_look_ahead_runs_every_call_once_and_reads_what_is_there(
    components: int, warmup: int, calls: int, finish: int
) -> None:
    periods = (1,) * components
    schedule = Schedule(components, "lookahead", warmup, periods, calls=calls, finish=finish)
    done: list[list[int]] = [[] for _ in range(components)]
    for call in range(calls):
        # the driver's component is last in the chain: what it reads was sent in this round at the latest
        for run in schedule.runs(call):
            assert set(run.reads) == {run.call}
            assert all(run.call in done[source] for source in range(run.component))
            done[run.component].append(run.call)
    assert [sorted(calls_done) for calls_done in done] == [list(range(calls))] * components
