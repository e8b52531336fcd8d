"""Judge: what is known of candidates' quality, and of their time over a trajectory; and why one passes one over."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from partitioner.plan.speedup import trajectory_speedup
from partitioner.planning.advice import Advice
from partitioner.planning.candidates import Candidate
from partitioner.planning.expected_quality import QualityAdvisor
from partitioner.planning.options import PlanOptions, default_warmup
from partitioner.planning.sampling_setup import ANY

GAIN = 0.05  # of its time, by which a plan that is not exact should be done before one that is, on as many devices

PassedOver = Literal["not measured", "near fewer steps", "no faster"]


class Judge:
    """Compares the candidates of one request.

    Args:
        candidates: All that were considered.
        options: The warm-up and predictor that a plan would have.
        sequential_ms: Time of a whole call on the fastest device alone.
        advisor: What was measured of quality; None: nothing.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        options: PlanOptions,
        sequential_ms: float,
        advisor: QualityAdvisor | None = None,
    ) -> None:
        self._candidates = [c for c in candidates if c.reason is None]
        self._options, self._sequential_ms, self._advisor = options, sequential_ms, advisor
        self._sampling = ANY if advisor is None else advisor.sampling
        self._advices = {id(c): self._advice(c) for c in self._candidates}
        inexact = [advice.remoteness for advice in self._advices.values() if advice is not None and not advice.exact]
        self._nearest = min(inexact, default=0)

    def advice(self, c: Candidate) -> Advice | None:
        """What was measured of plans like a candidate with the sampler that will be used.

        None where no sampler is known, the candidate is one component, or it has no split.
        """
        return self._advices.get(id(c))

    def remoteness(self, c: Candidate) -> int:
        """Advice.remoteness, beyond the least of all candidates that are not exact."""
        advice = self.advice(c)
        return 0 if advice is None else max(0, advice.remoteness - self._nearest)

    def doubt(self, c: Candidate) -> int:
        """Advice.doubt of a candidate."""
        advice = self.advice(c)
        return 0 if advice is None else advice.doubt

    def mean_step_ms(self, c: Candidate) -> float:
        """Over a trajectory, with as many exact steps as were measured; in the first no stream is foreseen."""
        if c.components == 1:
            return c.step_ms + (c.first_step_ms - c.exact_step_ms) / self._sampling.steps
        advice = self.advice(c)
        share = None if advice is None else advice.exact_share
        return self._sequential_ms / self._speedup(c, share)

    def is_no_faster(self, c: Candidate, others: Sequence[Candidate]) -> bool:
        """Whether one of the others is done as soon, on no more devices, and is exact or as good on fewer."""
        return c.components > 1 and any(self._does_as_well(other, c) for other in others)

    def passed_over(self, c: Candidate, chosen: Candidate) -> PassedOver | None:
        """Why quality prefers the chosen one; None where that has other reasons."""
        if c.reason is not None or c is chosen:
            return None
        if self.remoteness(c) > self.remoteness(chosen):
            return "not measured"
        if self.doubt(c) > self.doubt(chosen):
            return "near fewer steps"
        return "no faster" if self.is_no_faster(c, self._candidates) else None

    def _does_as_well(self, other: Candidate, c: Candidate) -> bool:
        if other.ranks > c.ranks:
            return False
        if other.components == 1:
            return self.mean_step_ms(other) <= (1 + GAIN) * self.mean_step_ms(c)
        good = self.remoteness(other) <= self.remoteness(c) and self.doubt(other) <= self.doubt(c)
        fewer = other.ranks < c.ranks and other.is_stale <= c.is_stale
        return fewer and good and self.mean_step_ms(other) <= self.mean_step_ms(c)

    def _advice(self, c: Candidate) -> Advice | None:
        advisor = self._advisor
        if advisor is None or advisor.sampling.scheduler is None or c.components == 1:
            return None
        predictor = self._options.predictor or advisor.async_predictor(c.components)
        return advisor.advise(c.components, c.mode, predictor, partial(self._speedup, c))

    def _speedup(self, c: Candidate, exact_share: float | None) -> float:
        sampling = self._sampling
        return trajectory_speedup(
            sampling.steps,
            sampling.scheduler,
            c.mode,
            self._options.warmup or default_warmup(c.components, c.mode),
            sequential_ms=self._sequential_ms,
            first_step_ms=c.first_step_ms,
            exact_step_ms=c.exact_step_ms,
            step_ms=c.step_ms,
            config=sampling.scheduler_config,
            exact_share=exact_share,
        )
