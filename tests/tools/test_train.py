"""tools.train: every recipe runs and leaves what the others and run-plan read; what is shipped is what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from runtime.denoiser import denoiser_name
from runtime.loading import load_pipeline
from tools.pictures.classifier import Classifier
from tools.pictures.pipelines import DENOISERS, TRAINED
from tools.pictures.shapes import draw, draw_labels
from tools.train import EMPTY_TOKENS, LONG_EVERY, condition, main

MOST_BYTES = 8e6


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec that was trained for two iterations."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["codec", "--iterations", "2", "--threads", "1", "--output", str(folder)]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", DENOISERS)
def test_a_denoiser_is_saved_as_a_pipeline(kind: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([kind, "--iterations", "1", "--samples", "8", "--threads", "1", "--output", str(trained)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["command"].startswith(f"python -m tools.train {kind}")
    assert (trained / kind / "samples.png").stat().st_size > 0
    pipe = load_pipeline(trained / kind, torch.float32)
    assert sum(p.numel() for p in getattr(pipe, denoiser_name(pipe)).parameters()) * 2 < MOST_BYTES


@pytest.mark.slow
def test_a_step_with_the_empty_tokens_of_the_pipeline_is_trained_too(trained: Path) -> None:
    """As diffusers appends them where the third text encoder is missing."""
    options = ["--iterations", str(LONG_EVERY), "--samples", "8", "--threads", "1", "--output", str(trained)]
    assert main(["mmdit", *options]) == 0
    pipe = load_pipeline(trained / "mmdit", torch.float32)
    usual, long = (condition(pipe, ["a red circle"], count)["encoder_hidden_states"] for count in (0, EMPTY_TOKENS))
    assert long.shape[1] - usual.shape[1] == EMPTY_TOKENS
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red circle", num_inference_steps=2, output_type="pt").images.shape == (1, 3, 32, 32)


@pytest.mark.slow
def test_the_classifier_is_saved(trained: Path) -> None:
    assert main(["classifier", "--iterations", "1", "--threads", "1", "--output", str(trained)]) == 0
    assert Classifier.load(trained / "classifier" / "classifier.safetensors").training is False


@pytest.mark.parametrize("kind", DENOISERS)
def test_shipped_denoisers_say_how_they_were_made(kind: str) -> None:
    record = json.loads((TRAINED / kind / "training.json").read_text())
    assert {"command", "seconds", "final_loss", "date", "torch"} <= set(record)
    for file in (TRAINED / kind).rglob("*.safetensors"):
        assert file.stat().st_size <= MOST_BYTES


def test_the_shipped_classifier_knows_the_shapes() -> None:
    generator = torch.Generator().manual_seed(5)
    pictures = draw(draw_labels(256, generator), generator)
    assert Classifier.load().agreement(pictures.pixels, pictures.labels) > 0.97
