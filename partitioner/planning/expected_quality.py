"""QualityAdvisor: how close to the sequential output a plan can be expected to come, by what was measured.

The shipped profile holds measurements on the small denoisers of tools/trained; a profile of one's own denoiser comes
from ``python -m tools.quality --pipeline FOLDER --calibrate FILE``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from partitioner.graph.ir import TracedGraph
from partitioner.limits import MOST_STEPS, check_whole
from partitioner.models.guidance import GuidanceStyle
from partitioner.models.guidance_scale import check_scale, scale_in_effect
from partitioner.models.samplers import refusal_of, settings_text
from partitioner.plan.predictor import PREDICTORS, PredictorName
from partitioner.search.mode import Mode
from partitioner.staleness.edge_errors import EdgeErrors, edge_errors_by_key
from profiles.measured_figure import MeasuredFigure, QualityCase, exact_share, expected_figure, fewer_steps_figure
from profiles.quality_profile import QualityProfile

if TYPE_CHECKING:
    from partitioner.models.spec import ModelSpec

STEPS = 50  # where nothing else is said
MARGIN_DB = 6.0  # by which a plan should come closer to the sequential output than fewer steps in the same time


@dataclass(frozen=True)
class SamplingSetup:
    """What a plan will be run with.

    Attributes:
        steps: Of one generation.
        scheduler: A class of diffusers, such as "DDIMScheduler"; None: not known, so that the worst that was measured
            counts.
        guidance_style: How the pipeline does guidance; None: not known.
        scheduler_config: How that class is configured, see ``partitioner.models.samplers``.
        guidance_scale: What the pipeline is called with; None: not known, so that the highest that was measured counts.
        scale_is_default: Whether that is the pipeline's default, which nobody has asked for.

    >>> SamplingSetup(steps=0)
    Traceback (most recent call last):
    partitioner.errors.UsageError: steps is 0; expected a whole number from 1 to 10000
    """

    steps: int = STEPS
    scheduler: str | None = None
    guidance_style: GuidanceStyle | None = None
    scheduler_config: str = ""
    guidance_scale: float | None = None
    scale_is_default: bool = False

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 1, MOST_STEPS)
        if self.guidance_scale is not None:
            check_scale(self.guidance_scale)

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        *,
        steps: int | None = None,
        scheduler: str | None = None,
        guidance_scale: float | None = None,
    ) -> SamplingSetup:
        """That of a model's pipeline, by default what is known of it.

        Args:
            spec: Of the model.
            steps: Of one generation; None for the pipeline's default, as for the others.
            scheduler: The class of another sampler, whose configuration is not known then.
            guidance_scale: What the pipeline is called with.

        Raises:
            UsageError: The number of steps or the scale makes no sense.
        """
        scale, style = spec.guidance_scale, spec.guidance_style
        if scale is not None and scale <= 1 and style in ("batch", "two-calls"):
            scale = None  # which computes no second half, and calls are planned that have one
        return cls(
            (spec.steps or STEPS) if steps is None else steps,
            scheduler or spec.scheduler,
            style,
            spec.scheduler_config if scheduler in (None, spec.scheduler) else "",
            scale if guidance_scale is None else guidance_scale,
            scale_is_default=guidance_scale is None and scale is not None,
        )

    @property
    def scale_in_effect(self) -> float | None:
        """The guidance scale that figures are for: 1 where a call computes no second half; None: not known."""
        return scale_in_effect(self.guidance_style, self.guidance_scale)

    @property
    def refusal(self) -> str | None:
        """Why the sampler's later latents cannot be predicted, as the end of a sentence; None where they can."""
        return refusal_of(self.scheduler, self.scheduler_config)


ANY = SamplingSetup()


@dataclass(frozen=True)
class Advice:
    """What quality to expect of a plan.

    Attributes:
        sampling: What it was measured with.
        expected: What was measured nearest to this case; None where nothing was, or the plan is exact.
        fewer_steps: The same of fewer sequential steps on one device in the same time, at the guidance scale that
            ``expected`` holds for.
        exact: Whether the plan's output is that of one device.
        speedup: That fewer steps are compared at; exact_share: of the calls, that it counts; None: not known.
    """

    sampling: SamplingSetup
    expected: MeasuredFigure | None
    fewer_steps: MeasuredFigure | None
    exact: bool = False
    speedup: float | None = None
    exact_share: float | None = None

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
        """The same at the nearest guidance scale at which the plan was measured, which decides where the one that is
        asked for lies beyond: it is told as that scale's only."""
        plan, fewer = self.expected, self.fewer_steps
        if self.exact or plan is None or fewer is None or plan.guidance_scale != fewer.guidance_scale:
            return self.margin_db
        return plan.psnr_db - fewer.psnr_db

    @property
    def against(self) -> bool:
        """Whether fewer steps on one device were measured to be at least as good."""
        return self.margin_db is not None and self.margin_db <= 0

    @property
    def doubt(self) -> int:
        """0: better than fewer steps by MARGIN_DB or more, or not measured; 1: better by less; 2: not better.

        At the nearest guidance scale that was measured.
        """
        margin = self.nearest_margin_db
        return 0 if margin is None or margin >= MARGIN_DB else 1 if margin > 0 else 2


def _told(figure: MeasuredFigure | None) -> float | None:
    return None if figure is None or figure.beyond else figure.psnr_db


class QualityAdvisor:
    """Answers from one quality profile for one sampling setup."""

    def __init__(self, profile: QualityProfile, sampling: SamplingSetup = ANY) -> None:
        self._profile = profile
        self.sampling = sampling

    def advise(
        self, components: int, mode: Mode, predictor: PredictorName, speedup: float, share: float | None = None
    ) -> Advice:
        """What to expect of a plan, and of fewer steps in the same time.

        With a sampler that look-ahead cannot predict the engine runs a plan for look-ahead exactly.

        Args:
            components: Of one branch.
            mode: Of the plan.
            predictor: Of the plan.
            speedup: Of the whole trajectory over one device, with as many exact calls as ``share`` says.
            share: As ``exact_share`` gives it.
        """
        if self.runs_exactly(components, mode):
            return Advice(self.sampling, None, None, exact=True)
        expected = self._expected(components, mode, predictor)
        case = self._case if expected is None else replace(self._case, guidance_scale=expected.guidance_scale)
        fewer = fewer_steps_figure(self._profile.rows, speedup, case)
        return Advice(self.sampling, expected, fewer, exact=components == 1, speedup=speedup, exact_share=share)

    def exact_share(self, components: int, mode: Mode) -> float | None:
        """The share of a plan's calls that were exact where it was measured, warm-up included; None where it was not.

        Args:
            components: Of one branch.
            mode: Of the plan; in async mode no calls but those of the warm-up are.
        """
        if mode != "lookahead" or components == 1 or self.runs_exactly(components, mode):
            return None
        return exact_share(self._profile.rows, components, self._case)

    def async_predictor(self, components: int) -> PredictorName:
        """The predictor that was measured to be best in async mode; ``adaptive``, which cannot run away, if none was.

        Args:
            components: Of one branch.
        """
        known = {p: found for p in PREDICTORS if (found := self._expected(components, "async", p)) is not None}
        highest = max((found.guidance_scale for found in known.values()), default=None)
        alike = {p: found.psnr_db for p, found in known.items() if found.guidance_scale == highest}
        # of equal dB the first is taken
        return max(alike, key=lambda p: alike[p]) if alike else "adaptive"

    def runs_exactly(self, components: int, mode: Mode) -> bool:
        """Whether the engine would run all calls of a plan exactly for want of a way to predict latents.

        Args:
            components: Of one branch.
            mode: Of the plan.
        """
        return self._unpredictable and mode == "lookahead" and components > 1

    def prefers_async(self, components: int) -> bool:
        """Whether async mode was measured to come closer to the sequential output than look-ahead, or has to stand in
        for it because the engine cannot look ahead: the sampler adds noise, say.

        Args:
            components: Of one branch.
        """
        if self._unpredictable:
            return True
        ahead = self._expected(components, "lookahead", "hold")
        stale = self._expected(components, "async", self.async_predictor(components))
        if ahead is None or stale is None or stale.guidance_scale < ahead.guidance_scale:
            return False  # at a lower scale every figure is better
        return stale.psnr_db > ahead.psnr_db

    @property
    def _unpredictable(self) -> bool:
        return self.sampling.refusal is not None

    def edge_errors(self, graph: TracedGraph) -> EdgeErrors | None:
        """What the profile holds of the staleness of this denoiser's edges, traced at whatever size; None: nothing."""
        for measured in self._profile.drift:
            found = edge_errors_by_key(graph, measured.edges, measured.sketches)
            if found is not None:
                return found
        return None

    @cached_property
    def _case(self) -> QualityCase:
        setup = self.sampling
        settings = "" if setup.scheduler is None else settings_text(setup.scheduler, setup.scheduler_config)
        return QualityCase(setup.steps, setup.scheduler, settings, setup.scale_in_effect)

    def _expected(self, components: int, mode: Mode, predictor: PredictorName) -> MeasuredFigure | None:
        """What was measured nearest to the case; None where nothing was, or the plan is exact."""
        if components == 1:
            return None
        return expected_figure(
            self._profile.rows, components, "lookahead" if mode == "lookahead" else predictor, self._case
        )
