"""advice: the likeness to the sequential output that a plan can be expected to have, by what was measured.

The shipped profile holds measurements on the small denoisers of tools/trained; a user's own comes from
``python -m tools.quality --pipeline FOLDER --calibrate FILE``.
"""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.graph.ir import TracedGraph
from partitioner.models.samplers import adds_noise
from partitioner.plan.fields import PredictorName
from partitioner.search.mode import Mode
from partitioner.staleness.edge_errors import EdgeErrors, drift_of_keys
from profiles.quality_profile import QualityProfile

HOP_PREDICTORS: tuple[PredictorName, ...] = ("hold", "linear", "adaptive")  # of equal dB the first is taken
STEPS = 50  # where nothing else is said
MARGIN_DB = 6.0  # by which a plan should come closer to the sequential output than fewer steps in the same time


@dataclass(frozen=True)
class SamplingSetup:
    """What a plan will be run for. scheduler: a class of diffusers; None: any, so the worst measured one counts."""

    steps: int = STEPS
    scheduler: str | None = None


ANY = SamplingSetup()


@dataclass(frozen=True)
class Advice:
    """PSNR in dB against the sequential output; None where nothing near was measured, inf where the plan is exact.

    fewer_steps_db: of fewer sequential steps on one device in the same time.
    """

    sampling: SamplingSetup
    psnr_db: float | None
    fewer_steps_db: float | None

    @property
    def margin_db(self) -> float | None:
        """By how much the plan comes closer than fewer steps; None where one of them is not known."""
        return None if self.psnr_db is None or self.fewer_steps_db is None else self.psnr_db - self.fewer_steps_db

    @property
    def against(self) -> bool:
        """Whether fewer steps on one device were seen to be at least as good."""
        return self.margin_db is not None and self.margin_db <= 0

    @property
    def doubt(self) -> int:
        """0 where the plan is better by MARGIN_DB at least, or not known to be no better; 1: by less; 2: not at all."""
        return 2 if self.against else int(self.margin_db is not None and self.margin_db < MARGIN_DB)


class QualityAdvisor:
    """Answers from one quality profile for one sampling."""

    def __init__(self, profile: QualityProfile, sampling: SamplingSetup = ANY) -> None:
        self._profile = profile
        self.sampling = sampling

    def advise(self, components: int, mode: Mode, predictor: PredictorName, speedup: float) -> Advice:
        """speedup: over one device, of the whole trajectory. With a sampler that adds noise all runs in async mode."""
        if self._adds_noise:
            mode = "async"
        fewer = self._profile.fewer_steps(speedup, self.sampling.steps, self.sampling.scheduler)
        return Advice(self.sampling, self._expected(components, mode, predictor), fewer)

    def hop_predictor(self, components: int) -> PredictorName:
        """What async mode should read with: what was best; `adaptive`, which cannot run away, if nothing is known."""
        known = {p: db for p in HOP_PREDICTORS if (db := self._expected(components, "async", p)) is not None}
        return max(known, key=lambda p: known[p]) if known else "adaptive"

    def prefers_async(self, components: int) -> bool:
        """Whether async mode was seen to come closer to the sequential output than look-ahead, or has to stand in for
        it: with a sampler that adds noise the engine cannot look ahead."""
        if self._adds_noise:
            return True
        ahead = self._expected(components, "lookahead", "hold")
        hop = self._expected(components, "async", self.hop_predictor(components))
        return ahead is not None and hop is not None and hop > ahead

    @property
    def _adds_noise(self) -> bool:
        return self.sampling.scheduler is not None and adds_noise(self.sampling.scheduler)

    def drift(self, graph: TracedGraph) -> EdgeErrors | None:
        """What was measured of the edges of this denoiser, at whatever size; None if nothing was."""
        for measured in self._profile.drift:
            found = drift_of_keys(graph, measured.edges, measured.sketches)
            if found is not None:
                return found
        return None

    def _expected(self, components: int, mode: Mode, predictor: PredictorName) -> float | None:
        if components == 1:
            return float("inf")
        named = "lookahead" if mode == "lookahead" else predictor
        return self._profile.expected(components, named, self.sampling.steps, self.sampling.scheduler)
