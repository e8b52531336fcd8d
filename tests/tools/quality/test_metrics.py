"""Metrics besides PSNR and SSIM: LPIPS where it is installed, the classifier for the shipped pipelines."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.support.pipelines import stable_diffusion
from tools.quality.measured_pipeline import MeasuredPipeline, shipped_pipeline
from tools.quality.metrics import PictureMetrics, metrics_for
from tools.quality.samplers import SamplingCase
from tools.quality.scorer import PictureScorer


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> MeasuredPipeline:
    pipe = stable_diffusion(Path(tmp_path_factory.mktemp("pipeline")))
    return MeasuredPipeline(pipe, "mine", ["a red cat"] * 2, chunk=1, guidance=None)


def test_lpips_is_the_median_over_the_pictures(pipeline: MeasuredPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def distances(pixels: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return (pixels - reference).abs().flatten(1).mean(1)

    fake: Any = ModuleType("lpips")
    fake.LPIPS = lambda net, verbose: distances
    monkeypatch.setitem(sys.modules, "lpips", fake)
    metrics = metrics_for(pipeline)
    reference = torch.full((2, 3, 16, 16), 0.5)
    row = PictureScorer(pipeline, SamplingCase(None, 8), reference, metrics, {}).sequential_row(8, reference + 0.25)
    assert row.lpips == pytest.approx(0.5)  # pictures in [-1, 1] differ by twice as much
    assert row.agreement is None


def test_there_is_none_for_a_users_pipeline_without_lpips(
    pipeline: MeasuredPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert metrics_for(pipeline) == PictureMetrics()


def test_the_classifier_judges_the_shipped_pipelines() -> None:
    metrics = metrics_for(shipped_pipeline("unet", 2, 2, None))
    assert metrics.classifier is not None
    assert metrics.drawn_features is None, "too few samples for a Fréchet distance"
