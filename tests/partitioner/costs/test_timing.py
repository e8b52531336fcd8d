"""Timing of calls: warm-up, undisturbed samples, and when a median is known. No time is asserted."""

from __future__ import annotations

import torch

from partitioner.costs.timing import Sample, _is_known, measure_whole, quietest, summarise


def test_summary_is_median_and_quartiles() -> None:
    cost = summarise([5.0, 1.0, 2.0, 3.0, 4.0], 0.5)
    assert (cost.median_ms, cost.iqr_ms, cost.launch_ms) == (3.0, 2.0, 0.5)


def test_whole_calls_are_warmed_up_and_counted() -> None:
    calls: list[int] = []
    samples = measure_whole(lambda: calls.append(torch.get_num_threads()), calls=4)
    assert set(calls) == {1}
    assert len(samples) >= 4
    assert 2 + len(samples) <= len(calls) <= 2 + 5 * 4  # two to warm up; more than four where they differ


def test_calls_are_enough_when_their_median_is_known() -> None:
    close = [Sample(100.0 + i, 0.1) for i in range(3)]
    apart = [Sample(100.0 + 4 * i, 0.1) for i in range(5)]
    assert _is_known(close, 3)
    assert not _is_known(close, 4)
    assert not _is_known([*close[:2], Sample(102.0, 50.0)], 3)
    assert not _is_known(apart, 3)
    assert _is_known(16 * apart, 3)


def test_disturbed_samples_do_not_count_where_others_are_enough() -> None:
    quiet = [Sample(10.0 + i, 0.1) for i in range(3)]
    disturbed = [Sample(20.0, 10.0), Sample(15.0, 5.0)]
    assert quietest([*disturbed, *quiet], 3) == [10.0, 11.0, 12.0]
    assert sorted(quietest([*disturbed, *quiet], 4)) == [10.0, 11.0, 12.0, 15.0]
    assert quietest([Sample(0.001, 0.01)] * 5, 5) == [0.001] * 5
