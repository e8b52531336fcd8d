"""Row: one measured run; Judge: the metrics that compare its pictures with the sequential output."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from partitioner.models.samplers import denoiser_calls
from tools.pictures.classifier import Classifier
from tools.pictures.frechet import frechet, frechet_noise
from tools.pictures.shapes import draw, draw_labels
from tools.pictures.similarity import psnr, ssim
from tools.quality.measured_pipeline import Subject
from tools.quality.samplers import Case

FEWEST_FOR_FRECHET = 1000


@dataclass(frozen=True)
class Row:
    """A row of the result: how it was run, medians over the samples, and the speed-up over one device.

    frechet_noise: standard deviation of the difference of its Fréchet distance from the sequential output's.
    """

    devices: int
    branches: int
    components: int
    period: int
    split: str
    predictor: str
    scheduler: str
    steps: int
    warmup: int
    samples: int
    psnr_db: float
    ssim: float
    agreement: float | None
    frechet: float | None
    frechet_noise: float | None
    lpips: float | None
    speedup: float
    speedup_source: str


@dataclass
class Judge:
    """Compares pictures with the sequential output of one case."""

    subject: Subject
    case: Case
    reference: torch.Tensor
    classifier: Classifier | None = None
    real: torch.Tensor | None = None  # features of drawn pictures
    lpips: Any = None

    @cached_property
    def _exact_features(self) -> torch.Tensor:
        assert self.classifier is not None
        return self.classifier.features(self.reference * 2 - 1)

    @torch.no_grad()
    def row(self, pixels: torch.Tensor, *, speedup: float, **what: Any) -> Row:
        agreement = distance = noise = perceptual = None
        if self.classifier is not None:
            assert self.subject.labels is not None
            agreement = self.classifier.agreement(pixels * 2 - 1, self.subject.labels)
            if self.real is not None:
                features = self.classifier.features(pixels * 2 - 1)
                distance = frechet(features, self.real)
                noise = frechet_noise(features, self._exact_features, self.real)
        if self.lpips is not None:
            perceptual = float(self.lpips(pixels * 2 - 1, self.reference * 2 - 1).median())
        return Row(
            scheduler=self.subject.sampler,
            samples=len(pixels),
            psnr_db=round(float(psnr(pixels, self.reference).median()), 2),
            ssim=round(float(ssim(pixels, self.reference).median()), 4),
            agreement=agreement if agreement is None else round(agreement, 4),
            frechet=distance if distance is None else round(distance, 4),
            frechet_noise=noise if noise is None else round(noise, 4),
            lpips=perceptual,
            speedup=round(speedup, 3),
            speedup_source="simulated",
            **what,
        )

    def sequential(self, steps: int, pixels: torch.Tensor) -> Row:
        """A row of one device: fewer steps than the case's, or all of them, which is the reference itself."""
        name = "fewer_steps" if steps != self.case.steps else "sequential"
        calls = [denoiser_calls(self.subject.sampler, count) for count in (self.case.steps, steps)]
        return self.row(
            pixels, devices=1, branches=1, components=1, period=1, split="one", predictor=name, steps=steps,
            warmup=steps, speedup=calls[0] / calls[1],
        )  # fmt: skip


def judges(subject: Subject) -> dict[str, Any]:
    """What judges pictures beside PSNR and SSIM: the shipped denoisers' classifier, else LPIPS if installed."""
    if subject.labels is not None:
        classifier = Classifier.load()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            drawn = draw(draw_labels(4 * FEWEST_FOR_FRECHET, generator), generator).pixels
            real = classifier.features(drawn)
        enough = len(subject.prompts) >= FEWEST_FOR_FRECHET
        return {"classifier": classifier, "real": real if enough else None}
    if importlib.util.find_spec("lpips") is not None:
        import lpips  # type: ignore[import-not-found, unused-ignore]

        return {"lpips": lpips.LPIPS(net="alex", verbose=False)}
    return {}
