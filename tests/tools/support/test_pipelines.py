"""Small pipelines: saved, loaded, run by a plan, and what is said of each."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from tools.support.denoisers import DENOISERS
from tools.support.pipeline_tries import try_pipeline
from tools.support.pipelines import PIPELINES
from tools.support.tiny_pipeline import TinyPipeline, tiny_pipeline
from tools.support.tries import is_finite, largest_difference

FAST = ["DDIMPipeline", "StableDiffusionPipeline"]


def test_every_pipeline_is_of_diffusers_and_there_are_many() -> None:
    assert set(PIPELINES) <= set(dir(diffusers))
    assert len(PIPELINES) >= 70


@pytest.mark.parametrize("name", FAST)
def test_a_pipeline_from_its_folder_makes_the_same_again(name: str, tmp_path: Path) -> None:
    tiny = PIPELINES[name]
    pipe = tiny.load(tiny.save(tmp_path))
    one, other = tiny.run(pipe, steps=2), tiny.run(pipe, steps=2)
    assert largest_difference(one, other) == 0
    assert is_finite(one)
    assert type(pipe.unet).__name__ in DENOISERS


@pytest.mark.slow
def test_a_pipeline_is_tried_in_each_mode(tmp_path: Path) -> None:
    found = try_pipeline(PIPELINES["DDIMPipeline"], tmp_path)
    assert (found.failed, found.difference, found.repeats, found.looks_ahead) == (None, 0, True, True)
    assert found.moves
    assert (found.calls_per_step, found.could_be_lagged, found.lagged, found.exact) == (1, 5, 5, {})


def test_where_a_pipeline_fails_is_said() -> None:
    def parts() -> dict[str, object]:
        raise RuntimeError("no parts\nat all")

    found = try_pipeline(tiny_pipeline("DDIMPipeline", parts), Path())
    assert (found.failed, found.why) == ("make", "RuntimeError: no parts")


def test_functions_make_the_arguments_of_a_call_and_its_sizes_are_known() -> None:
    tiny = TinyPipeline("DDIMPipeline", dict, {"image": lambda: torch.ones(1), "height": 8, "num_frames": 3}, "pt")
    assert tiny.sizes() == {"height": 8, "frames": 3}

    def pipe(**arguments: object) -> dict[str, object]:
        return arguments

    made = tiny.run(pipe, steps=5)
    assert made["image"] == torch.ones(1)
    assert (made["num_inference_steps"], made["output_type"], made["return_dict"]) == (5, "pt", False)
