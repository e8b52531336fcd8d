"""Stats: calls and their times are counted apart by how they were run."""

from __future__ import annotations

from runtime.stats import CallTimes


def test_calls_are_counted_by_mode() -> None:
    times = CallTimes()
    assert times.stats((), {}).mode == "exact"
    for mode, seconds in (("exact", 0.25), ("lookahead", 0.5), ("lookahead", 0.25), ("exact", 0.75)):
        times.add(mode, seconds)
    stats = times.stats((), {})
    assert (stats.steps, stats.exact_steps, stats.lookahead_steps, stats.async_steps) == (4, 2, 2, 0)
    assert (stats.exact_ms, stats.lookahead_ms, stats.async_ms) == (500.0, 375.0, None)
    assert stats.mode == "lookahead"
    times.add("async", 0.5)
    stats = times.stats((), {"transformer_2": 3})
    assert (stats.async_ms, stats.mode) == (500.0, "lookahead and async")
    assert stats.uncovered_calls == {"transformer_2": 3}


def test_reasons_of_exact_calls_are_counted() -> None:
    times = CallTimes()
    for reason in ("warm-up", "another prompt", "warm-up"):
        times.add("exact", 0.1, reason)
    times.add("async", 0.1)
    assert times.stats((), {}).exact_reasons == {"warm-up": 2, "another prompt": 1}
