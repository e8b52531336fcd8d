"""tools.train: every recipe runs and leaves what the others and run-plan read; what is shipped is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from profiles.quality_profile import QualityProfile
from runtime.denoiser import denoiser_name
from runtime.loading import load_pipeline
from tools.pictures.classifier import Classifier
from tools.pictures.pipelines import DENOISERS, HELD_OUT, TRAINED, call_arguments, new_codec, new_pipeline
from tools.pictures.shapes import draw, draw_labels
from tools.quality.measured_pipeline import shipped_pipeline
from tools.train.__main__ import main
from tools.train.denoisers import EMPTY_TOKENS, LONG_EVERY, condition
from tools.train.lessons import LESSONS

MOST_BYTES = 8e6
ALL = DENOISERS + HELD_OUT


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec that was trained for two iterations."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["codec", "--iterations", "2", "--threads", "1", "--output", str(folder)]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "mmdit", "linear-dit"])  # of noise, of flow, held out
def test_a_denoiser_is_saved_as_a_pipeline(kind: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([kind, "--iterations", "1", "--samples", "8", "--threads", "1", "--output", str(trained)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["command"].startswith(f"python -m tools.train {kind}")
    assert (trained / kind / "samples.png").stat().st_size > 0
    pipe = load_pipeline(trained / kind, torch.float32)
    assert sum(p.numel() for p in getattr(pipe, denoiser_name(pipe)).parameters()) * 2 < MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("kind", HELD_OUT)
def test_a_held_out_denoiser_is_trained_with_the_arguments_that_its_pipeline_gives(kind: str) -> None:
    """One batch of both halves, and the timesteps and targets of the sampler that the pipeline has."""
    pipe = new_pipeline(kind, new_codec())
    pipe.set_progress_bar_config(disable=True)
    denoiser = getattr(pipe, denoiser_name(pipe))
    calls: list[tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]] = []
    denoiser.register_forward_hook(
        lambda _, given, named, output: calls.append((given, named, output[0])), with_kwargs=True
    )
    prompts = ["a red circle on navy left", "a cross on pink above"]
    pipe(prompts, num_inference_steps=1, guidance_scale=3.0, output_type="latent", **call_arguments(kind))
    ((_, given, _),) = calls
    trained = condition(pipe, prompts)
    for name, value in trained.items():
        for key, tensor in value.items() if isinstance(value, dict) else [(None, value)]:
            found = given[name] if key is None else given[name][key]
            assert torch.equal(found[2:], tensor), name  # the second half is that of the prompts


@pytest.mark.parametrize("kind", HELD_OUT)
def test_a_held_out_denoiser_learns_what_its_sampler_takes_for_the_picture(kind: str) -> None:
    """From the target of a lesson, one step of the pipeline's own sampler to the end finds the latents."""
    scheduler = new_pipeline(kind, new_codec()).scheduler
    torch.manual_seed(0)
    latents = torch.randn(64, 4, 2, 2)
    noisy, timesteps, target, _ = LESSONS[kind](scheduler, latents)
    late = int(timesteps.argmax())
    scheduler.set_timesteps(2)
    scheduler.sigmas = torch.zeros(2)
    if kind == "linear-dit":
        level = timesteps[late] / 1000
        scheduler.sigmas[0], sample = level, noisy[late]
    else:
        kept = scheduler.alphas_cumprod[timesteps[late]]
        scheduler.sigmas[0] = ((1 - kept) / kept).sqrt()
        sample = noisy[late] / kept.sqrt()  # Euler's samples are not scaled down
    scheduler.set_begin_index(0)
    done = scheduler.step(target[late], scheduler.timesteps[0], sample, return_dict=False)[0]
    torch.testing.assert_close(done, latents[late], atol=1e-3, rtol=0)


@pytest.mark.slow
def test_training_may_end_after_so_many_minutes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--minutes", "1e-6", "--samples", "8", "--threads", "1", "--output", str(trained)]
    assert main(["linear-dit", *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["iterations"] == 1
    assert record["command"].endswith("--minutes 1e-06")


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


@pytest.mark.parametrize("kind", ALL)
def test_shipped_denoisers_say_how_they_were_made(kind: str) -> None:
    record = json.loads((TRAINED / kind / "training.json").read_text())
    assert {"command", "seconds", "final_loss", "date", "torch"} <= set(record)
    for file in (TRAINED / kind).rglob("*.safetensors"):
        assert file.stat().st_size <= MOST_BYTES


def test_no_shipped_figure_is_of_a_held_out_denoiser() -> None:
    assert not set(HELD_OUT) & set(DENOISERS)
    assert not set(HELD_OUT) & {row.denoiser for row in QualityProfile.load().rows}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HELD_OUT)
def test_a_held_out_denoiser_draws_what_is_asked_for(kind: str) -> None:
    pipeline = shipped_pipeline(kind, 32, 32, 5.0)
    assert pipeline.labels is not None
    with torch.no_grad():
        assert Classifier.load().agreement(pipeline.generate(20) * 2 - 1, pipeline.labels) > 0.7


def test_the_shipped_classifier_knows_the_shapes() -> None:
    generator = torch.Generator().manual_seed(5)
    pictures = draw(draw_labels(256, generator), generator)
    assert Classifier.load().agreement(pictures.pixels, pictures.labels) > 0.97
