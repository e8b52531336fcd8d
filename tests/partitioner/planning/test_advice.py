"""partitioner.planning.advice: what is told, and what only decides between plans."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from partitioner.planning.advice import MARGIN_DB, Advice
from partitioner.planning.sampling_setup import ANY
from profiles.measured_figure import MeasuredFigure

PLAN = MeasuredFigure(50.0, 3.0, (3.0,))
FEWER = MeasuredFigure(40.0, 3.0, (3.0,))
KNOWN = Advice(ANY, PLAN, FEWER, FEWER)


def test_what_was_measured_is_told_beside_fewer_steps() -> None:
    assert (KNOWN.psnr_db, KNOWN.fewer_steps_db, KNOWN.margin_db, KNOWN.nearest_margin_db) == (50.0, 40.0, 10.0, 10.0)
    assert (KNOWN.against, KNOWN.doubt, KNOWN.remoteness) == (False, 0, 0)


@pytest.mark.parametrize(("fewer_db", "doubt"), [(50 - MARGIN_DB, 0), (51 - MARGIN_DB, 1), (50.0, 2), (60.0, 2)])
def test_doubt_grows_with_what_fewer_steps_have(fewer_db: float, doubt: int) -> None:
    fewer = replace(FEWER, psnr_db=fewer_db)
    assert Advice(ANY, PLAN, fewer, fewer).doubt == doubt
    assert Advice(ANY, PLAN, None, fewer).doubt == doubt, "the nearest decides"


def test_the_nearest_time_of_fewer_steps_decides_and_is_not_told() -> None:
    unknown = replace(KNOWN, fewer_steps=None)
    assert (unknown.fewer_steps_db, unknown.margin_db, unknown.nearest_margin_db) == (None, None, 10.0)
    assert not replace(unknown, nearest_fewer=replace(FEWER, psnr_db=60.0)).against


def test_another_guidance_scale_is_not_told_either() -> None:
    beyond = replace(KNOWN, expected=replace(PLAN, beyond=True))
    assert (beyond.psnr_db, beyond.margin_db, beyond.nearest_margin_db, beyond.remoteness) == (None, None, 10.0, 1)
    elsewhere = replace(beyond, nearest_fewer=replace(FEWER, guidance_scale=5.0))
    assert elsewhere.nearest_margin_db is None


def test_the_exact_is_known_and_the_unmeasured_is_not() -> None:
    exact = Advice(ANY, None, None, exact=True)
    assert (exact.psnr_db, exact.margin_db, exact.doubt, exact.remoteness) == (math.inf, None, 0, 0)
    nothing = Advice(ANY, None, None)
    assert (nothing.psnr_db, nothing.margin_db, nothing.doubt, nothing.remoteness) == (None, None, 0, 2)
