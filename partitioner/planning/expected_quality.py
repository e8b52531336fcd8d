"""QualityAdvisor: how close to the sequential output a plan can be expected to come, by what was measured.

The shipped profile holds measurements on the small denoisers of tools/trained; a profile of one's own denoiser comes
from ``python -m tools.quality --pipeline FOLDER --calibrate FILE``.
"""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.errors import UsageError
from partitioner.graph.ir import TracedGraph
from partitioner.models.guidance import GuidanceStyle
from partitioner.models.samplers import refusal_of
from partitioner.plan.fields import PredictorName
from partitioner.search.mode import Mode
from partitioner.staleness.edge_errors import EdgeErrors, edge_errors_by_key
from profiles.quality_profile import QualityProfile

ASYNC_PREDICTORS: tuple[PredictorName, ...] = ("hold", "linear", "adaptive")  # of equal dB the first is taken
STEPS = 50  # where nothing else is said
MOST_STEPS = 10_000
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

    >>> SamplingSetup(steps=0)
    Traceback (most recent call last):
    partitioner.errors.UsageError: --steps is 0; expected 1 to 10000
    """

    steps: int = STEPS
    scheduler: str | None = None
    guidance_style: GuidanceStyle | None = None
    scheduler_config: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise UsageError(f"--steps is {self.steps}; expected 1 to {MOST_STEPS}")

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
        psnr_db: PSNR in dB against the sequential output; inf where the plan is exact, None where nothing near this
            case was measured.
        fewer_steps_db: The same of fewer sequential steps on one device in the same time; None where not measured.
        denoisers: What was measured, which may be others than the one that is planned.
    """

    sampling: SamplingSetup
    psnr_db: float | None
    fewer_steps_db: float | None
    denoisers: tuple[str, ...] = ()

    @property
    def margin_db(self) -> float | None:
        """By how much the plan comes closer than fewer steps; None where one of them was not measured."""
        return None if self.psnr_db is None or self.fewer_steps_db is None else self.psnr_db - self.fewer_steps_db

    @property
    def against(self) -> bool:
        """Whether fewer steps on one device were measured to be at least as good."""
        return self.margin_db is not None and self.margin_db <= 0

    @property
    def doubt(self) -> int:
        """0: better than fewer steps by MARGIN_DB or more, or not measured; 1: better by less; 2: not better."""
        return 2 if self.against else int(self.margin_db is not None and self.margin_db < MARGIN_DB)


class QualityAdvisor:
    """Answers from one quality profile for one sampling setup."""

    def __init__(self, profile: QualityProfile, sampling: SamplingSetup = ANY) -> None:
        self._profile = profile
        self.sampling = sampling

    def advise(self, components: int, mode: Mode, predictor: PredictorName, speedup: float) -> Advice:
        """What to expect of a plan, and of fewer steps in the same time.

        With a sampler that look-ahead cannot predict the engine runs every plan in async mode, so that is looked up.

        Args:
            components: Of one branch.
            mode: Of the plan.
            predictor: Of the plan.
            speedup: Of the whole trajectory over one device.
        """
        if self._unpredictable:
            mode = "async"
        fewer = self._profile.fewer_steps(speedup, self.sampling.steps, self.sampling.scheduler)
        denoisers = tuple(sorted({row.denoiser for row in self._profile.rows}))
        return Advice(self.sampling, self._expected(components, mode, predictor), fewer, denoisers)

    def async_predictor(self, components: int) -> PredictorName:
        """The predictor that was measured to be best in async mode; ``adaptive``, which cannot run away, if none was.

        Args:
            components: Of one branch.
        """
        known = {p: db for p in ASYNC_PREDICTORS if (db := self._expected(components, "async", p)) is not None}
        return max(known, key=lambda p: known[p]) if known else "adaptive"

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
        return ahead is not None and stale is not None and stale > ahead

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

    def _expected(self, components: int, mode: Mode, predictor: PredictorName) -> float | None:
        if components == 1:
            return float("inf")
        named = "lookahead" if mode == "lookahead" else predictor
        return self._profile.expected(components, named, self.sampling.steps, self.sampling.scheduler)
