"""profiles.measured_figure: what was measured is found by steps, sampler and guidance scale, and nothing is made up."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest

from profiles.measured_figure import MeasuredFigure, QualityCase, exact_share, expected_figure, fewer_steps_figure
from profiles.quality_profile import QualityProfile, QualityRow

DDIM = "DDIMScheduler"


def row(**fields: Any) -> QualityRow:
    given: dict[str, Any] = {
        "denoiser": "unet", "scheduler": DDIM, "steps": 50, "components": 2, "split": "contiguous",
        "predictor": "lookahead", "warmup": 4, "samples": 256, "psnr_db": 55.0, "speedup": 1.8, "guidance_scale": 3.0,
    }  # fmt: skip
    return QualityRow(**(given | fields))


FEWER: dict[str, Any] = {"predictor": "fewer_steps", "components": 1}
ROWS = (
    row(),
    row(denoiser="dit", psnr_db=58.0),
    row(steps=20, psnr_db=45.0),
    row(scheduler="UniPCMultistepScheduler", psnr_db=40.0),
    row(components=4, psnr_db=42.0),
    row(predictor="hold", psnr_db=33.0),
    row(predictor="hold", split="folded", psnr_db=31.0),
    row(**FEWER, psnr_db=40.0, speedup=2.0),
    row(**FEWER, psnr_db=30.0, speedup=4.0),
    row(**FEWER, denoiser="dit", psnr_db=36.0, speedup=3.0),
)
GUIDED = (
    row(),
    row(guidance_scale=5.0, psnr_db=45.0),
    row(guidance_scale=7.5, psnr_db=20.0),
    row(denoiser="dit", guidance_scale=3.0, psnr_db=50.0),
    row(denoiser="dit", guidance_scale=7.5, psnr_db=32.0),
    row(**FEWER, psnr_db=46.0),
    row(**FEWER, guidance_scale=5.0, psnr_db=44.0),
    row(**FEWER, guidance_scale=7.5, psnr_db=42.0),
)


def ahead(rows: tuple[QualityRow, ...], scale: float | None, **case: Any) -> MeasuredFigure:
    found = expected_figure(rows, 2, "lookahead", QualityCase(50, DDIM, guidance_scale=scale, **case))
    assert found is not None
    return found


def db(components: int, predictor: str, steps: int, scheduler: str | None) -> float | None:
    found = expected_figure(ROWS, components, predictor, QualityCase(steps, scheduler))
    return None if found is None else found.psnr_db


def test_the_least_over_denoisers_of_the_nearest_case() -> None:
    assert db(2, "lookahead", 50, DDIM) == 55.0
    assert db(2, "lookahead", 30, DDIM) == 45.0
    assert db(2, "lookahead", 40, DDIM) == 55.0
    assert db(2, "lookahead", 50, None) == 40.0
    assert db(2, "hold", 50, None) == 31.0
    assert db(4, "lookahead", 50, DDIM) == 42.0


def test_what_was_not_measured_is_not_known() -> None:
    assert db(2, "lookahead", 200, DDIM) is None
    assert db(3, "lookahead", 50, DDIM) is None
    assert db(2, "linear", 50, DDIM) is None
    assert db(2, "lookahead", 50, "HeunDiscreteScheduler") is None


def test_fewer_steps_between_measured_speedups() -> None:
    def fewer(speedup: float) -> float | None:
        found = fewer_steps_figure(ROWS, speedup, QualityCase(50, DDIM))
        return None if found is None else found.psnr_db

    assert fewer(2.5) == 37.5
    assert fewer(3.0) == 36.0  # the DiT's, which is more than 35
    assert fewer(5.0) is None


def test_what_was_measured_at_a_guidance_scale_is_taken_as_it_is() -> None:
    assert ahead(GUIDED, 5.0) == MeasuredFigure(42.0, 5.0, (3.0, 7.5), False, ("dit", "unet"), (50, 50))  # the DiT's
    assert ahead(GUIDED[:3], 5.0) == MeasuredFigure(45.0, 5.0, (5.0,), False, ("unet",), (50,))
    assert ahead(GUIDED, 7.5).between == (7.5,)


def test_between_two_scales_it_is_never_above_a_line_through_what_was_measured_of_any_denoiser() -> None:
    assert ahead(GUIDED[:3], 4.0) == MeasuredFigure(50.0, 4.0, (3.0, 5.0), False, ("unet",), (50, 50))
    lines = {"unet": ((3.0, 55.0), (5.0, 45.0), (7.5, 20.0)), "dit": ((3.0, 50.0), (7.5, 32.0))}
    for scale in (3.0, 3.5, 4.9, 5.5, 6.0, 7.4):
        found = ahead(GUIDED, scale)
        for points in lines.values():
            (low, first), (high, last) = next((one, two) for one, two in pairwise(points) if one[0] <= scale <= two[0])
            assert found.psnr_db <= first + (last - first) * (scale - low) / (high - low) + 1e-9
        assert not found.beyond


@pytest.mark.parametrize("rows", [GUIDED, GUIDED[:3], GUIDED[:1]])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.8, 10.0, 100.0])
def test_nothing_is_made_up_beyond_what_was_measured(rows: tuple[QualityRow, ...], scale: float) -> None:
    """The nearest is told as what it is, with its own scale."""
    found, end = ahead(rows, scale), min({row.guidance_scale for row in rows}, key=lambda known: abs(known - scale))
    assert found.beyond
    assert (found.guidance_scale, found.between) == (end, (end,))
    assert found.psnr_db == min(row.psnr_db for row in rows if row.guidance_scale == end and row.components == 2)


def test_a_little_beyond_the_last_its_own_figure_holds() -> None:
    assert ahead(GUIDED, 7.8) == MeasuredFigure(20.0, 7.8, (7.5,), False, ("dit", "unet"), (50,))
    assert ahead(GUIDED, 7.9).beyond


def test_of_an_unknown_scale_the_highest_counts() -> None:
    assert ahead(GUIDED, None) == MeasuredFigure(20.0, 7.5, (7.5,), False, ("dit", "unet"), (50,))


def test_each_scale_has_its_own_nearest_number_of_steps() -> None:
    rows = (row(steps=50), row(steps=28, guidance_scale=5.0, psnr_db=41.0), row(steps=20, guidance_scale=7.0))
    assert (ahead(rows, 5.0).psnr_db, ahead(rows, 5.0).steps) == (41.0, (28,))
    assert ahead(rows, 4.0).steps == (50, 28)
    assert ahead(rows, 7.0).beyond, "20 steps say nothing of 50"


def test_fewer_steps_are_looked_up_at_the_same_scale() -> None:
    found = fewer_steps_figure(GUIDED, 1.8, QualityCase(50, DDIM, guidance_scale=4.0))
    assert found == MeasuredFigure(45.0, 4.0, (3.0, 5.0), False, ("unet",), (50, 50))
    beyond = fewer_steps_figure(GUIDED, 1.8, QualityCase(50, DDIM, guidance_scale=12.0))
    assert beyond == MeasuredFigure(42.0, 7.5, (7.5,), True, ("unet",), (50,))


def test_the_same_settings_of_a_sampler_count_before_others() -> None:
    plain, karras = '{"beta_end": 0.012}', '{"beta_end": 0.012, "use_karras_sigmas": true}'
    rows = (
        row(scheduler_config=plain),
        row(scheduler_config=plain, guidance_scale=5.0, psnr_db=48.0),
        row(scheduler_config=karras, psnr_db=35.0),
    )
    assert ahead(rows, 3.0, scheduler_config=plain).psnr_db == 55.0
    assert ahead(rows, 3.0, scheduler_config=karras).psnr_db == 35.0
    assert ahead(rows, 3.0, scheduler_config="{}").psnr_db == 35.0
    assert ahead(rows, 3.0).psnr_db == 35.0
    assert ahead(rows, 5.0, scheduler_config=karras).psnr_db == 48.0, "where its own say nothing"


def test_every_answer_of_the_shipped_profile_lies_among_its_rows() -> None:
    rows = QualityProfile.load().rows
    samplers = sorted({row.scheduler for row in rows})
    for scheduler, scale, steps in product(samplers, (1.0, 3.0, 4.0, 6.0, 7.5), (20, 28, 50)):
        found = expected_figure(rows, 2, "lookahead", QualityCase(steps, scheduler, guidance_scale=scale))
        if found is not None:
            assert set(found.between) <= {row.guidance_scale for row in rows}
            assert found.beyond == (found.guidance_scale != scale)


def test_the_share_of_exact_calls_is_the_most_that_was_measured_and_beyond_nothing() -> None:
    rows = (
        row(exact_share=0.1),
        row(denoiser="dit", exact_share=0.2),
        row(guidance_scale=5.0, exact_share=0.3),
        row(denoiser="dit", guidance_scale=5.0),
        row(components=3, exact_share=0.9),
    )
    shares = [exact_share(rows, 2, QualityCase(50, DDIM, guidance_scale=scale)) for scale in (3.0, 4.0, 5.0, 9.0)]
    assert shares == [0.2, pytest.approx(0.2), 0.3, None]
    assert exact_share(GUIDED, 2, QualityCase(50, DDIM, guidance_scale=3.0)) is None
