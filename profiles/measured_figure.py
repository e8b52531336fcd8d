"""expected_figure, fewer_steps_figure, exact_share: what a quality profile's rows say of a case, and between which of
them it lies.

A case is a number of steps, a sampler and a guidance scale. Each denoiser and sampler is looked at by itself: of its
rows those with the nearest number of steps count, for each guidance scale that was measured, and of these the ones
that were measured with the guard, if there are any; between two scales the PSNR is interpolated linearly, beyond the
lowest and the highest it is not known. Then the least of all denoisers is taken, or of fewer steps the most: no answer
promises more than what was measured of any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from profiles.quality_profile import FEWER_STEPS, QualityRow

STEPS_RATIO = 2.0  # of the steps asked for and those measured, beyond which a row says nothing
SLACK = 0.05  # so far beyond the lowest or highest that was measured its own value holds

_Figures = Mapping[float, tuple[float, int]]  # guidance scale -> dB and the steps that it was measured with
_Measure = Callable[[Sequence[QualityRow]], float | None]


@dataclass(frozen=True)
class QualityCase:
    """What is asked about.

    Attributes:
        steps: Of the run, or of the one that fewer steps are compared with.
        scheduler: The sampler's class; None for the worst that was measured.
        scheduler_config: Its settings, as in QualityRow; rows with the same ones count if there are any, else all of
            that class.
        guidance_scale: As in QualityRow; None for the highest that was measured.
    """

    steps: int
    scheduler: str | None = None
    scheduler_config: str = ""
    guidance_scale: float | None = None


@dataclass(frozen=True)
class MeasuredFigure:
    """A PSNR in dB against the sequential output, and where it comes from.

    Attributes:
        psnr_db: The figure.
        guidance_scale: What it holds for: the scale that was asked for; else the nearest that was measured.
        between: The measured guidance scales that it comes from: one, or the two between which it is interpolated.
        beyond: Whether the scale that was asked for lies beyond all that were measured, so that this is not its figure.
        denoisers: What was measured.
        steps: With how many steps, at each scale of ``between``.
    """

    psnr_db: float
    guidance_scale: float
    between: tuple[float, ...]
    beyond: bool = False
    denoisers: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()


def expected_figure(
    rows: Iterable[QualityRow], components: int, predictor: str, case: QualityCase
) -> MeasuredFigure | None:
    """The PSNR to expect: the least over denoisers and splits.

    Args:
        rows: Of a quality profile.
        components: Components of a branch; only rows with as many count.
        predictor: As in QualityRow; only rows with the same count.
        case: How the plan will be run.

    Returns:
        None where nothing was measured within half and twice the steps.

    >>> from profiles.quality_profile import QualityProfile
    >>> expected_figure(QualityProfile.load().rows, 999, "hold", QualityCase(50)) is None
    True
    """
    own = [row for row in rows if row.components == components and row.predictor == predictor]
    return _figure(own, case, lambda near: min((row.psnr_db for row in near), default=None), min)


def fewer_steps_figure(
    rows: Iterable[QualityRow], speedup: float, case: QualityCase, *, nearest: bool = False
) -> MeasuredFigure | None:
    """The PSNR of a sequential run of ``steps / speedup`` steps: the most over denoisers.

    Args:
        rows: Of a quality profile.
        speedup: By how much fewer steps shorten the run; between measured ones the PSNR is interpolated.
        case: The run that it is compared with.
        nearest: Beyond the speed-ups that were measured take the last, however far it is.

    Returns:
        None where nothing was measured near.
    """
    own = [row for row in rows if row.predictor == FEWER_STEPS]

    def at_speedup(near: Sequence[QualityRow]) -> float | None:
        return _between([(row.speedup, row.psnr_db) for row in near], speedup, nearest)

    return _figure(own, case, at_speedup, max)


def exact_share(rows: Iterable[QualityRow], components: int, case: QualityCase) -> float | None:
    """The share of calls that a guard of the usual quality makes exact in look-ahead: the most over denoisers.

    Returns:
        None where it was not measured, or at other guidance scales only.
    """
    own = [row for row in rows if row.components == components and row.exact_share is not None]
    found = _figure(own, case, lambda near: max((row.exact_share or 0.0 for row in near), default=None), max)
    return None if found is None or found.beyond else found.psnr_db


def _figure(
    rows: Iterable[QualityRow], case: QualityCase, measure: _Measure, of_all: Callable[[Iterable[float]], float]
) -> MeasuredFigure | None:
    """The figure of all denoisers and samplers. measure: a figure of rows with one guidance scale."""
    series: dict[tuple[str, str], list[QualityRow]] = {}
    for row in rows:
        if case.scheduler in (None, row.scheduler):
            series.setdefault((row.denoiser, row.scheduler), []).append(row)
    known = {key: figures for key, own in series.items() if (figures := _by_scale(own, case.steps, measure))}
    scales = {scale for figures in known.values() for scale in figures}
    if not scales:
        return None
    asked = max(scales) if case.guidance_scale is None else case.guidance_scale
    found = []
    for (denoiser, name), figures in known.items():
        alike = [row for row in series[denoiser, name] if row.scheduler_config == case.scheduler_config != ""]
        same_settings = _at_scale(_by_scale(alike, case.steps, measure), asked)
        found.append((denoiser, same_settings or _at_scale(figures, asked)))
    inside = [(denoiser, *place) for denoiser, place in found if place is not None]
    if not inside:
        end = min(scales, key=lambda scale: abs(scale - asked))
        inside = [(key[0], figures[end][0], {end: figures[end][1]}) for key, figures in known.items() if end in figures]
    psnr_db = of_all(db for _, db, _ in inside)
    steps = next(steps for _, db, steps in inside if db == psnr_db)
    between, beyond = tuple(steps), all(place is None for _, place in found)
    denoisers = tuple(sorted({denoiser for denoiser, _, _ in inside}))
    return MeasuredFigure(psnr_db, between[0] if beyond else asked, between, beyond, denoisers, tuple(steps.values()))


def _by_scale(rows: Sequence[QualityRow], steps: int, measure: _Measure) -> _Figures:
    """The figures of the rows of one denoiser and sampler."""
    found = {}
    for scale in sorted({row.guidance_scale for row in rows}):
        near = _nearest([row for row in rows if row.guidance_scale == scale], steps)
        value = measure(near)
        if value is not None:
            found[scale] = value, near[0].steps
    return found


def _at_scale(figures: _Figures, scale: float) -> tuple[float, dict[float, int]] | None:
    """The figure at a guidance scale, and steps by the measured scales that it comes from; None where that lies beyond
    them."""
    below = max((known for known in figures if known <= scale), default=None)
    above = min((known for known in figures if known >= scale), default=None)
    if below is not None and above is not None and below < above:
        share = (scale - below) / (above - below)
        (low, low_steps), (high, high_steps) = figures[below], figures[above]
        return low + (high - low) * share, {below: low_steps, above: high_steps}
    end = below if above is None else above
    if end is None or abs(scale - end) > SLACK * end:
        return None
    return figures[end][0], {end: figures[end][1]}


def _nearest(rows: Sequence[QualityRow], steps: int) -> list[QualityRow]:
    """The rows with the nearest number of steps, by ratio; none where that is beyond a factor of two.

    Rows that say how many calls the guard made exact go before older ones, of which it made none.
    """
    near = [row for row in rows if abs(math.log(row.steps / steps)) <= math.log(STEPS_RATIO)]
    near = [row for row in near if row.exact_share is not None] or near
    distance = min((abs(math.log(row.steps / steps)) for row in near), default=math.inf)
    return [row for row in near if abs(math.log(row.steps / steps)) == distance]


def _between(points: Iterable[tuple[float, float]], at: float, nearest: bool) -> float | None:
    """The value at a place between points (place, value), interpolated linearly.

    A little beyond the first or last point, or if the nearest will do, it is the value there; further away None.
    """
    points = sorted(points)
    for (low, first), (high, second) in pairwise(points):
        if low <= at <= high:
            return first if high == low else first + (second - first) * (at - low) / (high - low)
    ends = [points[0], points[-1]] if points else []
    place, value = min(ends, key=lambda end: abs(at - end[0]), default=(0.0, None))
    return value if nearest or (value is not None and abs(at / place - 1) <= SLACK) else None
