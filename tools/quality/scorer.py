"""PictureScorer: compares the pictures of a run with the sequential output of the same seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from partitioner.models.samplers import denoiser_calls
from profiles.quality_profile import FEWER_STEPS
from tools.pictures.frechet import frechet, frechet_noise
from tools.pictures.similarity import psnr, ssim
from tools.quality.measured_pipeline import MeasuredPipeline
from tools.quality.metrics import PictureMetrics
from tools.quality.result_row import ResultRow
from tools.quality.samplers import SamplingCase


@dataclass
class PictureScorer:
    """Scores pictures of one case.

    Attributes:
        reference: its sequential output, (samples, 3, height, width) in [0, 1].
        floors: the fields of ResultRow that hold the case's noise floors.
    """

    pipeline: MeasuredPipeline
    case: SamplingCase
    reference: torch.Tensor
    metrics: PictureMetrics
    floors: Mapping[str, float | None]

    @cached_property
    def _reference_features(self) -> torch.Tensor:
        assert self.metrics.classifier is not None
        return self.metrics.classifier.features(self.reference * 2 - 1)

    @torch.no_grad()
    def row(self, pixels: torch.Tensor, *, speedup: float, **run: Any) -> ResultRow:
        """The result row of a run.

        Args:
            pixels: its pictures, (samples, 3, height, width) in [0, 1].
            speedup: over the sequential run.
            run: the fields of ResultRow that say how the pictures were made.
        """
        agreement = distance = noise = perceptual = None
        classifier, drawn = self.metrics.classifier, self.metrics.drawn_features
        if classifier is not None:
            assert self.pipeline.labels is not None
            agreement = classifier.agreement(pixels * 2 - 1, self.pipeline.labels)
            if drawn is not None:
                features = classifier.features(pixels * 2 - 1)
                distance = frechet(features, drawn)
                noise = frechet_noise(features, self._reference_features, drawn)
        if self.metrics.lpips is not None:
            perceptual = float(self.metrics.lpips(pixels * 2 - 1, self.reference * 2 - 1).median())
        return ResultRow(
            scheduler=self.pipeline.sampler,
            samples=len(pixels),
            psnr_db=round(float(psnr(pixels, self.reference).median()), 2),
            ssim=round(float(ssim(pixels, self.reference).median()), 4),
            agreement=agreement if agreement is None else round(agreement, 4),
            frechet=distance if distance is None else round(distance, 4),
            frechet_noise=noise if noise is None else round(noise, 4),
            lpips=perceptual,
            speedup=round(speedup, 3),
            speedup_source="simulated",
            guidance_scale=self.pipeline.guidance_scale,
            scheduler_config=self.pipeline.sampler_settings,
            floor_float16_db=self.floors.get("floor_float16_db"),
            floor_bfloat16_db=self.floors.get("floor_bfloat16_db"),
            **run,
        )

    def sequential_row(self, steps: int, pixels: torch.Tensor) -> ResultRow:
        """The row of a run on one device with so many steps; with all steps of the case it is the reference itself."""
        name = FEWER_STEPS if steps != self.case.steps else "sequential"
        calls = [denoiser_calls(self.pipeline.sampler, count) for count in (self.case.steps, steps)]
        return self.row(
            pixels, devices=1, branches=1, components=1, period=1, split="one", predictor=name, steps=steps,
            warmup=steps, speedup=calls[0] / calls[1],
        )  # fmt: skip
