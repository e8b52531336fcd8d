"""runtime.generation: what run-plan says of the call that it makes. (That it makes it: test_cli.)"""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from partitioner.errors import UsageError
from partitioner.models.guidance import GuidanceStyle
from runtime.generation import load, warn_of_other_guidance
from tests.support import pipelines
from tests.support.toy_plan import toy_plan


class Pipeline:
    def __call__(self, prompt: str, guidance_scale: float = 7.5) -> None: ...


class Video:
    def __call__(self, min_guidance_scale: float = 1.0, max_guidance_scale: float = 3.0) -> None: ...


class TrueScale:
    def __call__(self, guidance_scale: float = 3.5, true_cfg_scale: float = 4.0) -> None: ...


@pytest.mark.parametrize(
    ("pipeline", "style", "planned", "asked", "told"),
    [
        (Pipeline, "batch", 7.5, None, None),
        (Pipeline, "batch", 7.5, 7.5, None),
        (Pipeline, "batch", None, 5.0, None),
        (Pipeline, "embedded", 1.0, 5.0, None),
        (Pipeline, "none", 1.0, None, None),
        (TrueScale, "two-calls", 4.0, 9.0, None),
        (Pipeline, "batch", 3.0, None, "scale of 3, and this run has 7.5"),
        (Pipeline, "batch", 7.5, 5.0, "scale of 7.5, and this run has 5;"),
        (Pipeline, "batch", 7.5, 0.0, "this run has 1;"),
        (Pipeline, "none", 1.0, 5.0, "scale of 1, and this run has 5;"),
        (Video, "batch", 3.0, 6.0, "this run has 6;"),
        (TrueScale, "two-calls", 3.0, 3.0, "this run has 4;"),
    ],
)
def test_another_guidance_scale_than_the_plans_is_told(
    pipeline: type, style: GuidanceStyle, planned: float | None, asked: float | None, told: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    plan = toy_plan().model_copy(update={"guidance_style": style, "guidance_scale": planned})

    def messages(plan: Any, exact: bool) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "runtime"):
            warn_of_other_guidance(pipeline(), plan, Namespace(guidance_scale=asked, exact=exact))
        return [record.message for record in caplog.records]

    assert [told is not None and told in message for message in messages(plan, exact=False)] == [True] * bool(told)
    assert messages(plan, exact=True) == []
    assert messages(plan.model_copy(update={"components": 1}), exact=False) == []


@pytest.mark.parametrize("left", ["all but one", "none"])
def test_a_folder_whose_files_lack_tensors_is_refused_by_name(tmp_path: Path, left: str) -> None:
    """diffusers loads it, and computes with memory that nobody has written to."""
    folder = pipelines.saved("stable_diffusion", tmp_path)
    (file,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    first = next(iter(pipelines.load(folder).unet.state_dict()))
    kept = {name: tensor.clone() for name, tensor in tensors.items() if left == "all but one" and name != first}
    save_file({"beside": torch.zeros(1), **kept}, file)
    options = Namespace(pipeline=str(folder), variant=None, config=None)
    which = first if left == "all but one" else f"{first} and {len(tensors) - 1} more of its {len(tensors)} tensors"
    with pytest.raises(
        UsageError, match=f"cannot be run: {which} of this UNet2DConditionModel ha.* no values .*hold no"
    ):
        load(options, torch.float32)
