"""Advice: what was measured of plans like one, and of fewer steps in the same time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from partitioner.planning.sampling_setup import SamplingSetup
from profiles.measured_figure import MeasuredFigure

MARGIN_DB = 6.0  # by which a plan should come closer to the sequential output than fewer steps in the same time


@dataclass(frozen=True)
class Advice:
    """What quality to expect of a plan.

    Attributes:
        sampling: What it was measured with.
        expected: What was measured nearest to this case; None where nothing was, or the plan is exact.
        fewer_steps: The same of fewer sequential steps on one device in the same time, at the guidance scale that
            ``expected`` holds for.
        nearest_fewer: The same in the nearest time that was measured, which decides between plans.
        exact: Whether the plan's output is that of one device.
        speedup: That fewer steps are compared at; exact_share: of the calls, that it counts; None: not known.
        other_settings: Whether it was measured with other settings of the sampler than those it will have.
    """

    sampling: SamplingSetup
    expected: MeasuredFigure | None
    fewer_steps: MeasuredFigure | None
    nearest_fewer: MeasuredFigure | None = None
    exact: bool = False
    speedup: float | None = None
    exact_share: float | None = None
    other_settings: bool = False

    @property
    def psnr_db(self) -> float | None:
        """PSNR in dB against the sequential output; inf where the plan is exact, None where nothing near this case was
        measured."""
        return math.inf if self.exact else _told(self.expected)

    @property
    def fewer_steps_db(self) -> float | None:
        """The same of fewer steps; None where it was not measured at this guidance scale."""
        return None if self.expected is not None and self.expected.beyond else _told(self.fewer_steps)

    @property
    def margin_db(self) -> float | None:
        """By how much the plan comes closer than fewer steps; None where one of them was not measured."""
        return None if self.psnr_db is None or self.fewer_steps_db is None else self.psnr_db - self.fewer_steps_db

    @property
    def nearest_margin_db(self) -> float | None:
        """The same at the nearest guidance scale at which the plan was measured, and against fewer steps in the nearest
        time in which they were, which decide where those that are asked for lie beyond: it is told as theirs only."""
        plan, fewer = self.expected, self.nearest_fewer
        if self.exact or plan is None or fewer is None or plan.guidance_scale != fewer.guidance_scale:
            return self.margin_db
        return plan.psnr_db - fewer.psnr_db

    @property
    def against(self) -> bool:
        """Whether fewer steps on one device were measured to be at least as good."""
        return self.margin_db is not None and self.margin_db <= 0

    @property
    def doubt(self) -> int:
        """0: better than fewer steps by MARGIN_DB or more, or one of them was not measured; 1: better by less; 2: not
        better.

        By ``nearest_margin_db``.
        """
        margin = self.nearest_margin_db
        return 0 if margin is None or margin >= MARGIN_DB else 1 if margin > 0 else 2

    @property
    def remoteness(self) -> int:
        """How far from the case the plan was measured: 0 where it was, or is exact; 1 at other guidance scales only;
        2 not at all."""
        if self.exact:
            return 0
        return 2 if self.expected is None else int(self.expected.beyond)


def _told(figure: MeasuredFigure | None) -> float | None:
    return None if figure is None or figure.beyond else figure.psnr_db
