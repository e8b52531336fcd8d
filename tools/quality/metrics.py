"""PictureMetrics: what pictures are compared by besides PSNR and SSIM, as far as it is there for a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tools.pictures.classifier import Classifier
from tools.pictures.shapes import draw, draw_labels
from tools.quality.measured_pipeline import MeasuredPipeline

FEWEST_FOR_FRECHET = 1000  # samples; with fewer the distance says more about their number than about the pictures


@dataclass(frozen=True)
class PictureMetrics:
    """Metrics that need a network; None where one is not there.

    Attributes:
        classifier: knows the drawn shapes of the shipped pipelines.
        drawn_features: its features of drawn pictures, (count, width).
        lpips: (pixels, reference), both (count, 3, height, width) in [-1, 1] -> distances.
    """

    classifier: Classifier | None = None
    drawn_features: torch.Tensor | None = None
    lpips: Any = None


def metrics_for(pipeline: MeasuredPipeline) -> PictureMetrics:
    """The classifier for a shipped pipeline; for any other pipeline LPIPS, if it is installed."""
    if pipeline.labels is not None:
        classifier = Classifier.load()
        enough = len(pipeline.prompts) >= FEWEST_FOR_FRECHET
        return PictureMetrics(classifier, drawn_features(classifier) if enough else None)
    try:
        import lpips  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return PictureMetrics()
    return PictureMetrics(lpips=lpips.LPIPS(net="alex", verbose=False))


@torch.no_grad()
def drawn_features(classifier: Classifier) -> torch.Tensor:
    """The classifier's features of drawn pictures, (count, width), with which made ones are compared."""
    generator = torch.Generator().manual_seed(2)
    return classifier.features(draw(draw_labels(4 * FEWEST_FOR_FRECHET, generator), generator).pixels)
