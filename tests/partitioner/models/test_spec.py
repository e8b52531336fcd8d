"""model_spec: sizes, branches, dtypes, and names that are not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from partitioner.errors import UsageError
from partitioner.graph.export import trace
from partitioner.models.call_rows import CallRows
from partitioner.models.find_spec import model_spec
from partitioner.models.guidance import GuidanceStyle
from partitioner.models.spec import trace_model
from tests.support.small_models import shapes, small_denoiser

# One of each way to call a denoiser.
TRACED = ("sd15", "sdxl", "svd", "animatediff", "sd3", "flux", "pixart", "wan", "stable-audio")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("sd15", "sdxl", "svd", "animatediff", "wan") else [])
        for name in TRACED
    ],
)
def test_a_folder_without_weights_traces_as_the_loaded_model_does(name: str, tmp_path: Path) -> None:
    denoiser = small_denoiser(name)
    denoiser.save_pretrained(tmp_path)
    loaded = type(denoiser).from_pretrained(tmp_path, torch_dtype=torch.float16).eval()
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()

    spec = model_spec(str(tmp_path), height=64, width=64, dtype=torch.float16)
    assert spec.class_name == type(denoiser).__name__
    graph = trace_model(spec)
    assert graph.fingerprint == trace(loaded, spec.example_inputs(), spec.roles).fingerprint


def test_sizes_are_pixels_and_the_batch_counts_images_per_half() -> None:
    assert shapes("sd15", height=256, width=384, batch=3)["sample"] == (6, 4, 32, 48)
    assert shapes("sd15", batch=3, guidance=False)["encoder_hidden_states"] == (3, 77, 768)
    assert shapes("svd", height=320, width=576, frames=14)["sample"] == (2, 14, 8, 40, 72)
    assert shapes("animatediff", frames=8, batch=2)["encoder_hidden_states"] == (2 * 2 * 8, 77, 768)
    assert shapes("flux", height=512, width=768)["img_ids"] == (32 * 48, 3)
    assert shapes("wan", frames=17)["hidden_states"] == (1, 16, 5, 60, 104)


def test_one_branch_is_half_of_the_rows() -> None:
    spec = model_spec("animatediff", batch=2)
    whole, half = spec.example_inputs(), spec.example_inputs(rows=2)
    assert whole["sample"].shape[0] == 2 * half["sample"].shape[0] == 4
    assert whole["encoder_hidden_states"].shape[0] == 2 * half["encoder_hidden_states"].shape[0]
    assert half["timestep"].shape == ()


@pytest.mark.parametrize(
    ("model", "sizes", "rows", "calls"),
    [
        ("flux", {}, 1, 1),
        ("wan", {}, 1, 2),
        ("qwen-image", {"batch": 3}, 3, 2),
        ("sd15", {}, 2, 1),
        ("sd15", {"batch": 4}, 8, 1),
        ("sd15", {"guidance": False, "batch": 3}, 3, 1),
    ],
)
def test_a_step_has_calls_and_these_have_rows(model: str, sizes: dict[str, Any], rows: int, calls: int) -> None:
    spec = model_spec(model, **sizes)
    assert spec.step == CallRows(rows, range(1, rows + 1), calls, sizes.get("batch", 1))
    with pytest.raises(UsageError, match=f"has {rows} rows, of which {rows + 1} are no part"):
        spec.example_inputs(rows=rows + 1)


@pytest.mark.parametrize(
    "name",
    [
        "chroma", "cosmos-predict2-2b", "flux2-klein-4b", "hunyuan-image", "hunyuan-video-1.5", "kandinsky5-lite",
        "krea2", "lumina2", "qwen-image", "wan", "wan22-t2v-a14b",
    ],
)  # fmt: skip
def test_guidance_in_two_calls_is_known_of_names(name: str) -> None:
    spec = model_spec(name)
    assert (spec.guidance_style, spec.step) == ("two-calls", CallRows(1, range(1, 2), calls=2))


@pytest.mark.parametrize(
    ("model", "asked", "step"),
    [
        ("sd15", "batch", CallRows(6, range(1, 7), 1, 3)),
        ("sd15", "two-calls", CallRows(3, range(1, 4), 2, 3)),
        ("sd15", "none", CallRows(3, range(1, 4), 1, 3)),
        ("wan", "none", CallRows(3, range(1, 4), 1, 3)),
        ("flux", "two-calls", CallRows(3, range(1, 4), 2, 3)),  # with true_cfg_scale
        ("flux", "embedded", CallRows(3, range(1, 4), 1, 3)),
    ],
)
def test_a_style_of_guidance_may_be_asked_for(model: str, asked: GuidanceStyle, step: CallRows) -> None:
    spec = model_spec(model, batch=3, guidance_style=asked)
    assert (spec.guidance_style, spec.step) == (asked, step)
    assert next(iter(spec.inputs.values())).shape[0] == step.rows


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        ("krea2", "batch", "the calls of krea2 hold no two halves; its style is two-calls"),
        ("sdxl", "embedded", "sdxl takes no scale of guidance as an input; its style is batch"),
        ("flux", "none", "flux takes the scale of guidance as an input of every call; its style is embedded"),
        ("sdxl", "cfg", "--guidance-style is cfg; expected batch, two-calls, embedded or none"),
    ],
)
def test_a_style_that_calls_cannot_have_is_refused(model: str, asked: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model_spec(model, guidance_style=asked)


def test_a_list_of_samples_is_not_divided() -> None:
    step = model_spec("z-image").step
    assert (step.rows, step.counts, step.whole) == (2, (2,), "its noisy samples are a list, which is not divided")


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        ("sd15", {"height": 500}, "--height 500 is not a multiple of 8.*use 496 or 504"),
        ("sd3", {"width": 1000}, "use 992 or 1008"),
        ("svd", {"height": 1080}, "--height 1080 is not a multiple of 64.*use 1024 or 1088"),
        ("sdxl", {"frames": 8}, "sdxl makes images.*leave --frames out"),
        ("wan", {"frames": 80}, "use 77 or 81"),
        ("sd15", {"batch": 0}, "batch is 0; expected a whole number from 1 to"),
        ("sd15", {"dtype": "int8"}, "--dtype int8 is not one of float16, bfloat16, float32"),
    ],
)
def test_sizes_that_a_model_cannot_have_are_refused(model: str, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model_spec(model, **sizes)


def test_unknown_names_are_refused_with_what_is_known() -> None:
    with pytest.raises(UsageError, match=r"no model named 'sdlx' \(nearest: sdxl, .*\); expected one .* --list-models"):
        model_spec("sdlx")
