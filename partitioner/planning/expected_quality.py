"""QualityAdvisor: how close to the sequential output a plan can be expected to come, by what was measured.

The shipped profile holds measurements on the small denoisers of tools/trained; a profile of one's own denoiser comes
from ``python -m tools.quality --pipeline FOLDER --calibrate FILE``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from partitioner.graph.ir import TracedGraph
from partitioner.models.samplers import denoiser_calls, settings_text, steps_within
from partitioner.plan.predictor import PREDICTORS, PredictorName
from partitioner.planning.advice import Advice
from partitioner.planning.sampling_setup import ANY, SamplingSetup
from partitioner.search.mode import Mode
from partitioner.staleness.edge_errors import EdgeErrors, edge_errors_by_key
from profiles.measured_figure import MeasuredFigure, QualityCase, exact_share, expected_figure, fewer_steps_figure
from profiles.quality_profile import QualityProfile, QualityRow

_Settings = tuple[str, str]  # a sampler's class and its settings
_Measured = tuple[_Settings, MeasuredFigure]


class QualityAdvisor:
    """Answers from one quality profile for one sampling setup."""

    def __init__(self, profile: QualityProfile, sampling: SamplingSetup = ANY) -> None:
        self._profile = profile
        self.sampling = sampling

    def advise(
        self, components: int, mode: Mode, predictor: PredictorName, speedup: Callable[[float | None], float]
    ) -> Advice:
        """What to expect of a plan, and of fewer steps in the same time.

        With a sampler that look-ahead cannot predict the engine runs a plan for look-ahead exactly. Where the sampler's
        settings were measured, theirs is told, else that of those with which the plan did worst.

        Args:
            components: Of one branch.
            mode: Of the plan.
            predictor: Of the plan.
            speedup: Of the whole trajectory over one device, of the share of its calls that are exact; None: only
                those that always are.
        """
        if components == 1 or self.runs_exactly(components, mode):
            return Advice(self.sampling, None, None, exact=True, speedup=speedup(None))
        found = []
        for settings, expected in self._measured(components, mode, predictor):
            rows = self._rows[settings]
            share = exact_share(rows, components, self._case) if mode == "lookahead" else None
            steps = expected.steps[0] if len(set(expected.steps)) == 1 else self._case.steps
            case = replace(self._case, steps=steps, guidance_scale=expected.guidance_scale)
            told = speedup(share)
            shorter = self._of_whole_steps(settings[0], told)
            fewer, nearest = (fewer_steps_figure(rows, shorter, case, nearest=n) for n in (False, True))
            other = self._case.scheduler_config not in ("", settings[1])
            found.append(Advice(self.sampling, expected, fewer, nearest, False, told, share, other))
        worst = max(found, key=lambda advice: (advice.doubt, -_psnr_db(advice)), default=None)
        return worst or Advice(self.sampling, None, None, speedup=speedup(None))

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
        ahead = dict(self._measured(components, "lookahead", "hold"))
        stale = dict(self._measured(components, "async", self.async_predictor(components)))
        both = [(ahead[group], stale[group]) for group in ahead if group in stale]
        # at a lower scale every figure is better
        closer = [a.guidance_scale <= s.guidance_scale and a.psnr_db < s.psnr_db for a, s in both]
        return bool(closer) and all(closer)

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

    @cached_property
    def _rows(self) -> dict[_Settings, list[QualityRow]]:
        """The profile's rows of the sampler, or of all where it is not known, by their settings."""
        groups: dict[_Settings, list[QualityRow]] = {}
        for row in self._profile.rows:
            if self._case.scheduler in (None, row.scheduler):
                groups.setdefault((row.scheduler, row.scheduler_config), []).append(row)
        return groups

    def _measured(self, components: int, mode: Mode, predictor: PredictorName) -> list[_Measured]:
        """The settings that count, and what was measured of such plans with them; empty where nothing was.

        Those of the sampler's own settings, else of all others; at its guidance scale, else at the nearest.
        """
        kind = "lookahead" if mode == "lookahead" else predictor
        known: list[_Measured] = []
        for settings, rows in self._rows.items():
            figure = expected_figure(rows, components, kind, self._case)
            if figure is not None:
                known.append((settings, figure))
        own = [found for found in known if found[0][1] == self._case.scheduler_config != ""]
        for some in (own, known):
            inside = [found for found in some if not found[1].beyond]
            if inside:
                return inside
        asked = self._case.guidance_scale or 0.0
        nearest = min((abs(figure.guidance_scale - asked) for _, figure in own or known), default=0.0)
        return [found for found in own or known if abs(found[1].guidance_scale - asked) == nearest]

    def _of_whole_steps(self, scheduler: str, speedup: float) -> float:
        """By how much as many whole steps shorten a trajectory as are done in the time that a speed-up leaves."""
        steps, config = self.sampling.steps, self.sampling.scheduler_config
        calls = denoiser_calls(scheduler, steps, config)
        fewer = steps_within(scheduler, steps, calls / speedup, config)
        return calls / denoiser_calls(scheduler, fewer, config)

    def _expected(self, components: int, mode: Mode, predictor: PredictorName) -> MeasuredFigure | None:
        """The least that was measured nearest to the case; None where nothing was."""
        figures = [figure for _, figure in self._measured(components, mode, predictor)]
        return min(figures, key=lambda figure: figure.psnr_db, default=None)


def _psnr_db(advice: Advice) -> float:
    return math.inf if advice.expected is None else advice.expected.psnr_db
