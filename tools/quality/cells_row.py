"""MeasuredCell: the figures of a cell of tools.quality.cells; and the score of pictures against the sequential ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tools.pictures.classifier import Classifier
from tools.pictures.frechet import frechet, frechet_noise
from tools.pictures.similarity import psnr


@dataclass(frozen=True)
class Score:
    """How pictures compare with the sequential ones of the same seeds.

    Attributes:
        psnr_db: median over the samples; worst_db: of the worst one.
        agreement: share of pictures in which the classifier recognises what the prompt says.
        agreement_noise: standard error of its difference from the sequential one.
        frechet: Fréchet distance of the classifier's features from those of drawn pictures.
        frechet_noise: standard deviation of its difference from the sequential one, by bootstrap.
    """

    psnr_db: float
    worst_db: float
    agreement: float
    agreement_noise: float
    frechet: float
    frechet_noise: float


@dataclass(frozen=True)
class MeasuredCell:
    """One cell: the engine beside fewer sequential steps in the same time.

    Attributes:
        denoiser, sampler, guidance, steps: the case.
        branches, components: of the plan.
        quality: what the engine was asked for: "default", or a value of its option.
        samples: how many pictures; chunk: how many in one call of the pipeline.
        engine, fewer, sequential: the scores.
        speedup: that was had, over all calls, by the times that the plan predicts for exact and other calls.
        planned_speedup: that the plan promised before the run.
        fewer_steps: of the baseline, the mean over the samples: each has as many as take the time of its own run.
        exact, lookahead, lagged: shares of the calls that were exact, in look-ahead and async.
        reasons: why calls were exact -> their share.
        note: why the sampler's latents cannot be predicted; None where they can.
        bound_db: that the guard holds pictures to; None where there is none.
        below_bound: share of samples below it.
        behind_fewer: share of samples further from their sequential picture than fewer steps are.
        seconds: that the case took, per cell.
        commit: that was measured.
    """

    denoiser: str
    sampler: str
    guidance: float
    steps: int
    branches: int
    components: int
    quality: str
    samples: int
    chunk: int
    engine: Score
    fewer: Score
    sequential: Score
    speedup: float
    planned_speedup: float
    fewer_steps: float
    exact: float
    lookahead: float
    lagged: float
    reasons: Mapping[str, float]
    note: str | None
    bound_db: float | None
    below_bound: float | None
    behind_fewer: float
    seconds: float
    commit: str


class CellScorer:
    """Scores pictures of one case. reference: its sequential output (samples, 3, height, width) in [0, 1]."""

    def __init__(
        self, classifier: Classifier, drawn: torch.Tensor, labels: torch.Tensor, reference: torch.Tensor
    ) -> None:
        self._classifier, self._drawn, self._labels, self._reference = classifier, drawn, labels, reference

    def distances(self, pixels: torch.Tensor) -> torch.Tensor:
        """PSNR in dB of each of the first pictures; what is not finite in them counts as black."""
        return psnr(pixels.nan_to_num(0), self._reference[: len(pixels)])

    @torch.no_grad()
    def score(self, pixels: torch.Tensor) -> Score:
        """The score of the first pictures."""
        count = len(pixels)
        labels, made, reference = self._labels[:count], pixels.nan_to_num(0) * 2 - 1, self._reference[:count] * 2 - 1
        right, wanted = (self._classifier.recognised(some, labels) for some in (made, reference))
        features, wanted_features = (self._classifier.features(some) for some in (made, reference))
        decibels = self.distances(pixels)
        return Score(
            psnr_db=round(float(decibels.median()), 2),
            worst_db=round(float(decibels.min()), 2),
            agreement=round(float(right.float().mean()), 4),
            agreement_noise=round(float((right != wanted).sum().sqrt()) / count, 4),
            frechet=round(frechet(features, self._drawn), 4),
            frechet_noise=round(frechet_noise(features, wanted_features, self._drawn), 4),
        )
