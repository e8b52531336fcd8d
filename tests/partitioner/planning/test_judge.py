"""partitioner.planning.judge: the measured goes before the unmeasured, and no device is taken that gains nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from partitioner.planning.branching import Branching
from partitioner.planning.candidates import Candidate
from partitioner.planning.expected_quality import QualityAdvisor
from partitioner.planning.judge import Judge
from partitioner.planning.options import PlanOptions
from partitioner.planning.sampling_setup import SamplingSetup
from partitioner.search.mode import Mode
from tests.support.quality_rows import profile_of

DDIM = SamplingSetup(50, "DDIMScheduler", "batch", guidance_scale=3.0)


def way(branches: int, components: int, step_ms: float, mode: Mode = "lookahead") -> Candidate:
    """Of a denoiser that takes 2 ms, its branches half of that each."""
    evaluations: Any = (SimpleNamespace(sequential_ms=2.0 / branches),)
    rows = (2,) if branches == 1 else (1, 1)
    return Candidate(Branching(rows), components, 1, mode, step_ms=step_ms, evaluations=evaluations)


def advisor(
    rows: list[tuple[str, int, float, float]], share: float | None = None, sampling: SamplingSetup = DDIM
) -> QualityAdvisor:
    """share: of the exact calls of look-ahead."""
    profile = profile_of(rows)
    kept = tuple(
        row.model_copy(update={"exact_share": share}) if row.predictor == "lookahead" else row for row in profile.rows
    )
    return QualityAdvisor(profile.model_copy(update={"rows": kept}), sampling)


def test_what_was_measured_goes_before_what_was_not_and_says_so() -> None:
    two, three = way(1, 2, 1.0), way(1, 3, 0.7)
    known = advisor([("lookahead", 2, 58.0, 1.8), ("fewer_steps", 1, 40.0, 1.8)])
    judge = Judge([three, two], PlanOptions(), 2.0, known)
    assert (judge.remoteness(two), judge.remoteness(three)) == (0, 2)
    assert (judge.passed_over(three, two), judge.passed_over(two, two)) == ("not measured", None)


def test_where_nothing_was_measured_it_tells_none_from_another() -> None:
    two, three = way(1, 2, 1.0), way(1, 3, 0.7)
    heun = SamplingSetup(50, "HeunDiscreteScheduler", "batch", guidance_scale=3.0)
    judge = Judge([three, two], PlanOptions(), 2.0, advisor([("lookahead", 2, 58.0, 1.8)], sampling=heun))
    assert (judge.remoteness(two), judge.remoteness(three)) == (0, 0)
    assert judge.passed_over(two, three) is None


def test_another_guidance_scale_is_nearer_than_nothing() -> None:
    two, three = way(1, 2, 1.0), way(1, 3, 0.7)
    at_15 = SamplingSetup(50, "DDIMScheduler", "batch", guidance_scale=15.0)
    judge = Judge([three, two], PlanOptions(), 2.0, advisor([("lookahead", 2, 58.0, 1.8)], sampling=at_15))
    assert (judge.remoteness(two), judge.remoteness(three)) == (0, 1)


def test_what_is_near_fewer_steps_is_said_to_be() -> None:
    two, three = way(1, 2, 1.0), way(1, 3, 0.7)
    rows = [("lookahead", 2, 58.0, 1.8), ("lookahead", 3, 45.0, 2.5), ("fewer_steps", 1, 41.0, 1.8)]
    judge = Judge([three, two], PlanOptions(), 2.0, advisor([*rows, ("fewer_steps", 1, 40.0, 2.5)]))
    assert judge.passed_over(three, two) == "near fewer steps"


@pytest.mark.parametrize(("share", "slower"), [(None, False), (0.4, False), (0.95, True), (1.0, True)])
def test_a_plan_of_exact_calls_gains_nothing_over_exact_branches(share: float | None, slower: bool) -> None:
    """Two branches on two devices take 1 ms a step, two of two components 0.5 ms where they look ahead."""
    exact, both = way(2, 1, 1.0), way(2, 2, 0.5)
    judge = Judge([both, exact], PlanOptions(), 2.0, advisor([("lookahead", 2, 90.0, 1.8)], share))
    assert judge.is_no_faster(both, [exact, both]) == slower
    assert judge.passed_over(both, exact) == ("no faster" if slower else None)
    assert not judge.is_no_faster(exact, [exact, both])


def test_a_warm_up_as_long_as_the_trajectory_is_not_bought_with_more_devices() -> None:
    two, four = way(1, 2, 1.0), way(1, 4, 0.5)
    for steps, slower in ((4, True), (8, True), (50, False)):
        sampling = SamplingSetup(steps, "DDIMScheduler", "batch", guidance_scale=3.0)
        judge = Judge([four, two], PlanOptions(), 2.0, advisor([], sampling=sampling))
        assert judge.is_no_faster(four, [two, four]) == slower


def test_async_mode_is_no_reason_to_pass_over_what_nothing_lags_in() -> None:
    ahead, stale = way(1, 4, 0.9), way(1, 2, 0.8, "async")
    judge = Judge([ahead, stale], PlanOptions(), 2.0)
    assert not judge.is_no_faster(ahead, [ahead, stale])
    assert judge.is_no_faster(way(1, 4, 0.9, "async"), [ahead, stale])
