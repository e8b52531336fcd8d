"""partitioner.planning.expected_quality: what was measured decides the mode and the predictor, and is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from partitioner.models.samplers import refusal_of
from partitioner.planning.advice import Advice
from partitioner.planning.branching import Branching
from partitioner.planning.candidates import Candidate
from partitioner.planning.choose import choose
from partitioner.planning.expected_quality import QualityAdvisor
from partitioner.planning.judge import Judge
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import default_predictor
from partitioner.planning.sampling_setup import SamplingSetup
from partitioner.search.mode import Mode
from profiles.quality_profile import FEWER_STEPS, QualityProfile
from tests.support.quality_rows import profile_of

ONE = Branching((1,))
EVALUATIONS: Any = (SimpleNamespace(sequential_ms=2.0),)


GUIDED = "DDIMScheduler", "batch", ""  # with a guidance scale behind


def at(speedup: float) -> Callable[[float | None], float]:
    """A speed-up that no exact call changes."""
    return lambda _: speedup


def advisor(sampling: SamplingSetup = SamplingSetup(), **psnr_db: float) -> QualityAdvisor:  # noqa: B008
    """Of a profile with one row per predictor, for two components."""
    rows = [(name, 1 if name == "fewer_steps" else 2, value, 1.8) for name, value in psnr_db.items()]
    return QualityAdvisor(profile_of(rows), sampling)


def test_advice_tells_what_was_measured_beside_fewer_steps() -> None:
    advice = advisor(lookahead=58.0, fewer_steps=33.0).advise(2, "lookahead", "hold", at(1.8))
    assert (advice.psnr_db, advice.fewer_steps_db, advice.against) == (58.0, 33.0, False)
    assert advisor(hold=30.0, fewer_steps=33.0).advise(2, "async", "hold", at(1.8)).against


def test_calls_that_the_guard_made_exact_count_in_the_speed_up() -> None:
    """Two components that would be twice as fast: with 20 of 50 calls exact 100/70 times."""
    profile = profile_of([("lookahead", 2, 58.0, 1.5), ("fewer_steps", 1, 45.0, 1.43), ("fewer_steps", 1, 33.0, 1.9)])
    rows = tuple(row.model_copy(update={"exact_share": 0.4}) if row.components == 2 else row for row in profile.rows)
    setup = SamplingSetup(50, "DDIMScheduler", "batch", guidance_scale=3.0)
    asked = QualityAdvisor(profile.model_copy(update={"rows": rows}), setup)
    two = Candidate(ONE, 2, 1, "lookahead", step_ms=1.0, evaluations=EVALUATIONS)
    advice = Judge([two], PlanOptions(), 2.0, asked).advice(two)
    assert advice is not None
    assert (advice.exact_share, advice.speedup) == (0.4, pytest.approx(100 / 70))
    assert advice.fewer_steps_db == pytest.approx(45.0, abs=0.1)
    assert asked.advise(2, "async", "hold", at(1.0)).exact_share is None
    assert asked.advise(1, "lookahead", "hold", at(1.0)).exact_share is None


def test_one_component_is_exact_and_the_unmeasured_is_not_known() -> None:
    known = advisor(lookahead=58.0)
    assert known.advise(1, "lookahead", "hold", at(2.0)).psnr_db == math.inf
    assert known.advise(4, "lookahead", "hold", at(3.0)).psnr_db is None
    assert advisor(SamplingSetup(500), lookahead=58.0).advise(2, "lookahead", "hold", at(1.8)).psnr_db is None
    other = SamplingSetup(50, "HeunDiscreteScheduler")
    assert advisor(other, lookahead=58.0).advise(2, "lookahead", "hold", at(1.8)).psnr_db is None


def test_the_best_predictor_at_the_hops_is_taken() -> None:
    assert advisor(hold=33.0, linear=48.0, adaptive=41.0).async_predictor(2) == "linear"
    assert advisor(hold=33.0).async_predictor(3) == "adaptive"
    chosen = Candidate(ONE, 2, 1, "async")
    assert default_predictor(chosen, advisor(hold=40.0, adaptive=35.0)) == "hold"
    assert default_predictor(chosen, None) == "adaptive"
    assert default_predictor(replace(chosen, mode="lookahead"), advisor(linear=40.0)) == "hold"


@pytest.mark.parametrize(("measured", "mode"), [({"lookahead": 30.0, "hold": 35.0}, "async"), ({}, "lookahead")])
def test_the_mode_that_came_closer_is_chosen(measured: dict[str, Any], mode: str) -> None:
    both = [Candidate(ONE, 2, 1, m, step_ms=1.0, evaluations=EVALUATIONS) for m in ("lookahead", "async")]  # type: ignore[arg-type]
    chosen = choose(both, *_nothing(2), 2.0, PlanOptions(force=True), advisor(**measured))
    assert chosen.mode == mode


@pytest.mark.parametrize(
    ("scheduler", "mode"), [("EulerAncestralDiscreteScheduler", "async"), ("EulerDiscreteScheduler", "lookahead")]
)
def test_a_sampler_that_adds_noise_is_planned_without_look_ahead(scheduler: str, mode: str) -> None:
    both = [Candidate(ONE, 2, 1, m, step_ms=1.0, evaluations=EVALUATIONS) for m in ("lookahead", "async")]  # type: ignore[arg-type]
    asked = advisor(SamplingSetup(50, scheduler), lookahead=50.0)
    assert choose(both, *_nothing(2), 2.0, PlanOptions(force=True), asked).mode == mode


def test_async_mode_that_stands_in_for_look_ahead_does_not_go_before_exact_branches() -> None:
    exact = Candidate(Branching((1, 1)), 1, 1, "lookahead", step_ms=1.2, evaluations=EVALUATIONS)
    stale = Candidate(ONE, 2, 1, "async", step_ms=1.0, evaluations=EVALUATIONS)
    asked = advisor(SamplingSetup(50, "EulerAncestralDiscreteScheduler"), lookahead=50.0)
    assert choose([stale, exact], *_nothing(2), 2.0, PlanOptions(), asked) is exact


def test_devices_that_none_can_use_well_do_not_make_exact_branches_alone_the_choice() -> None:
    """Of eight devices four are of use; two of these would be too few, as they are where there are four."""
    ways = [
        Candidate(Branching((1, 1)), k, 1, "lookahead", step_ms=1.0 / k, evaluations=EVALUATIONS) for k in (1, 2, 4)
    ]
    ways[0] = replace(ways[0], step_ms=1.2)
    asked = advisor(SamplingSetup(50, "DDIMScheduler"), lookahead=58.0, fewer_steps=33.0)
    for devices, candidates in ((8, ways), (4, ways[:2])):
        assert choose(candidates, *_nothing(devices), 2.0, PlanOptions(), asked) is ways[1]


def test_what_fewer_steps_were_seen_to_beat_is_passed_over() -> None:
    """Three devices that fewer steps beat, or nearly, lose to two that they do not, and so do three that were not
    measured; where nothing was, three are taken, and of two that are doubted the better."""
    ways = [Candidate(ONE, 3, 1, "lookahead", step_ms=0.7, evaluations=EVALUATIONS)]
    ways += [Candidate(ONE, 2, 1, "lookahead", step_ms=1.1, evaluations=EVALUATIONS)]
    ways += [Candidate(ONE, 3, 1, "async", step_ms=0.7, evaluations=EVALUATIONS)]  # of which nothing is known
    rows = [("lookahead", 3, 33.0, 2.4), ("lookahead", 2, 54.0, 1.7), ("fewer_steps", 1, 45.0, 1.5)]
    rows += [("fewer_steps", 1, 38.0, 3.0)]
    ddim, any_sampler = SamplingSetup(50, "DDIMScheduler"), SamplingSetup(50)
    nearly = [("lookahead", 3, 43.0, 2.4), *rows[1:]]  # 43 against 41: not beaten, but by 2 dB only
    both = [nearly[0], ("lookahead", 2, 40.0, 1.7), *rows[2:]]
    cases = [
        (rows, ddim, 2),
        (rows[1:], ddim, 2),
        (rows[2:], ddim, 3),
        (rows, any_sampler, 3),
        (nearly, ddim, 2),
        (both, ddim, 3),
    ]
    for known, sampling, components in cases:
        asked = QualityAdvisor(profile_of(known), sampling)
        chosen = choose(ways, *_nothing(3), 2.0, PlanOptions(force=True), asked)
        assert (chosen.components, chosen.mode) == (components, "lookahead")


def at_scales(sampling: SamplingSetup, **measured: dict[float, float]) -> QualityAdvisor:
    """Of a profile with a row per predictor and guidance scale, for two components."""
    profiles = [
        profile_of([(name, 1 if name == "fewer_steps" else 2, db, 1.8)], scale)
        for name, figures in measured.items()
        for scale, db in figures.items()
    ]
    rows = tuple(row for profile in profiles for row in profile.rows)
    return QualityAdvisor(profiles[0].model_copy(update={"rows": rows}), sampling)


def test_figures_are_those_of_the_guidance_scale_or_none() -> None:
    known = {"lookahead": {3.0: 60.0, 5.0: 40.0}, "fewer_steps": {3.0: 50.0, 5.0: 44.0}}
    for scale, psnr_db, fewer_db, doubt in ((3, 60, 50, 0), (4, 50, 47, 1), (5, 40, 44, 2), (7.5, None, None, 2)):
        advice = at_scales(SamplingSetup(50, *GUIDED, scale), **known).advise(2, "lookahead", "hold", at(1.8))
        assert (advice.psnr_db, advice.fewer_steps_db, advice.doubt) == (psnr_db, fewer_db, doubt)
        assert advice.against == (doubt == 2 and psnr_db is not None)
    assert advice.expected is not None
    assert (advice.expected.guidance_scale, advice.nearest_margin_db, advice.margin_db) == (5.0, -4.0, None)


def test_without_a_second_half_the_scale_is_1() -> None:
    known = {"lookahead": {1.0: 70.0, 3.5: 50.0}}
    for style, expected in (("embedded", 70.0), ("none", 70.0), ("batch", 50.0), (None, 50.0)):
        setup = SamplingSetup(50, "DDIMScheduler", style, guidance_scale=3.5)  # type: ignore[arg-type]
        assert at_scales(setup, **known).advise(2, "lookahead", "hold", at(1.8)).psnr_db == expected
    assert at_scales(SamplingSetup(50), **known).advise(2, "lookahead", "hold", at(1.8)).psnr_db == 50.0


def test_async_mode_is_not_preferred_for_what_it_was_at_a_lower_scale() -> None:
    setup = SamplingSetup(50, *GUIDED, 7.5)
    assert not at_scales(setup, lookahead={3.0: 60.0, 7.5: 20.0}, hold={3.0: 30.0}).prefers_async(2)
    assert at_scales(setup, lookahead={3.0: 60.0, 7.5: 20.0}, hold={7.5: 30.0}).prefers_async(2)
    assert at_scales(setup, linear={3.0: 40.0}, hold={3.0: 39.0, 7.5: 30.0}).async_predictor(2) == "hold"


SHIPPED = QualityProfile.load()
AT_3 = [row for row in SHIPPED.rows if row.guidance_scale == 3]
MEASURED = sorted({(row.scheduler, row.steps) for row in AT_3 if row.predictor != FEWER_STEPS})
WITH_SETTINGS = sorted(
    {(row.scheduler, row.scheduler_config, row.steps) for row in AT_3 if row.predictor == "lookahead"}
)
WITH_SETTINGS += sorted({(row.scheduler, "", row.steps) for row in AT_3 if row.predictor == "lookahead"})
NO_PLAN = sorted({(row.scheduler, row.steps) for row in AT_3} - set(MEASURED))  # whose plans would all be exact


def recommended(
    scheduler: str, steps: int, devices: int, settings: str = ""
) -> tuple[Candidate, Advice, QualityAdvisor]:
    """In one branch, with the shipped measurements at a guidance scale of 3."""
    counts = [count for count in (2, 3, 4, 8) if count <= devices]
    modes: tuple[Mode, ...] = ("lookahead", "async")
    ways = [Candidate(ONE, k, 1, mode, step_ms=2.04 / k, evaluations=EVALUATIONS) for k in counts for mode in modes]
    asked = QualityAdvisor(SHIPPED, SamplingSetup(steps, scheduler, "batch", settings, 3.0))
    chosen = choose(ways, *_nothing(devices), 2.0, PlanOptions(), asked)
    advice = Judge(ways, PlanOptions(), 2.0, asked).advice(chosen)
    assert advice is not None
    return chosen, advice, asked


def test_look_ahead_was_measured_with_every_sampler_of_which_anything_was_but_those_that_add_noise() -> None:
    ahead = {(scheduler, steps) for scheduler, _, steps in WITH_SETTINGS}
    assert ahead == {case for case in MEASURED if refusal_of(case[0]) is None}


@pytest.mark.parametrize(("scheduler", "settings", "steps"), WITH_SETTINGS)
@pytest.mark.parametrize("devices", [2, 3, 4, 8])
def test_by_what_was_measured_nothing_is_recommended_that_fewer_steps_come_near(
    scheduler: str, settings: str, steps: int, devices: int
) -> None:
    """6 dB better than fewer steps, and not below hold by 0.5, with every deterministic sampler that was measured.

    Where the guard made many calls exact, a speed-up can be left at which fewer steps were not measured; then it is
    6 dB better than in the nearest time in which they were.
    """
    chosen, advice, asked = recommended(scheduler, steps, devices, settings)
    assert (advice.remoteness, chosen.mode) == (0, "lookahead")
    assert advice.nearest_margin_db is not None
    assert advice.nearest_margin_db >= 6
    assert advice.margin_db is None or advice.margin_db >= 6
    assert advice.psnr_db is not None
    held = asked.advise(chosen.components, "async", "hold", at(1.0)).psnr_db
    assert held is None or held <= advice.psnr_db + 0.5


@pytest.mark.parametrize(("scheduler", "steps"), NO_PLAN)
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_where_every_call_is_in_the_warm_up_no_device_more_is_taken(scheduler: str, steps: int, devices: int) -> None:
    """Four steps of a sampler that adds noise, of which fewer steps were measured and no plan."""
    chosen, advice, _ = recommended(scheduler, steps, devices)
    assert (chosen.components, chosen.mode) == (2, "async")
    assert (advice.psnr_db, advice.speedup) == (None, 1.0)


@pytest.mark.parametrize(("scheduler", "steps"), [case for case in MEASURED if refusal_of(case[0]) is not None])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_with_a_sampler_that_adds_noise_it_is_told_what_async_mode_is_worth(
    scheduler: str, steps: int, devices: int
) -> None:
    chosen, advice, asked = recommended(scheduler, steps, devices)
    assert chosen.mode == "async"
    assert asked.advise(chosen.components, "lookahead", "hold", at(1.0)).exact
    held = asked.advise(chosen.components, "async", "hold", at(1.0)).psnr_db
    assert advice.psnr_db is not None
    assert held is not None
    assert held <= advice.psnr_db


def _nothing(devices: int) -> tuple[Any, Any]:
    """A fleet and a problem that are not looked at when a plan is forced, but for the number of devices."""

    class Problem:
        class item_bytes:
            sum = staticmethod(lambda: 0)

        class activation_bytes:
            max = staticmethod(lambda: 0)

    return [SimpleNamespace(memory_bytes=math.inf)] * devices, Problem
