"""Arguments that a pipeline's call is tried with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from partitioner.errors import UsageError
from partitioner.models.pipeline_call import guessed_calls, guidance_arguments, missing_arguments
from partitioner.models.sizes import Sizes


class Edits:
    vae_scale_factor = 4

    def __call__(
        self,
        image: Any,
        prompt: Any = None,
        negative_prompt: Any = None,
        mask_image: Any = None,
        strength: float = 0.3,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        num_images_per_prompt: int = 1,
    ) -> None:
        """Never called."""  # fmt: skip


class Films:
    def __call__(self, prompt: Any, height: int = 64, width: int = 96, num_frames: int = 9, video: Any = None) -> None:
        """Never called."""


class Embeds:
    def __call__(self, image_embeds: Any, height: int | None = None) -> None:
        """Never called."""


def test_what_a_modular_pipelines_blocks_declare_is_what_its_call_takes() -> None:
    class Modular:
        blocks = SimpleNamespace(
            inputs=[
                SimpleNamespace(name="prompt", default=None, required=True),
                SimpleNamespace(name="num_inference_steps", default=50, required=False),
                SimpleNamespace(name="height", default=None, required=False),
                SimpleNamespace(name=None, default=None, required=False),
                SimpleNamespace(name="latents", default=None, required=True),
            ]
        )

        def __call__(self, state: Any = None, output: Any = None, **inputs: Any) -> None:
            """Never called."""

    call = next(guessed_calls(Modular(), None, Sizes(height=32), 3, {}))
    assert (call["num_inference_steps"], call["height"]) == (3, 32)
    assert "prompt" in call
    assert missing_arguments(Modular(), call) == ["latents"]


def test_what_must_be_given_is_and_more_is_tried_afterwards() -> None:
    denoiser = SimpleNamespace(config={"sample_size": 16})
    first, second = guessed_calls(Edits(), denoiser, Sizes(batch=2), 3, {})
    assert {name: first[name] for name in ("strength", "num_inference_steps", "num_images_per_prompt")} == {
        "strength": 1.0, "num_inference_steps": 3, "num_images_per_prompt": 2
    }  # fmt: skip
    assert first["image"].size == (64, 64)
    assert second.keys() - first.keys() == {"mask_image"}
    assert guidance_arguments(Edits()) == ("guidance_scale",)
    assert "negative_prompt" not in next(guessed_calls(Edits(), denoiser, Sizes(guidance=False), 3, {}))


def test_a_text_is_left_out_where_its_embeddings_are_given() -> None:
    class Needs:
        def __call__(self, prompt: Any, prompt_embeds: Any = None, negative_prompt: Any = None) -> None:
            """Never called."""

    given = {"prompt_embeds": 1}
    assert next(guessed_calls(Needs(), None, Sizes(), 3, given)) == {
        "prompt": None, "prompt_embeds": 1, "negative_prompt": "blurred"
    }  # fmt: skip


def test_the_outputs_kind_is_left_to_the_pipeline_in_the_end() -> None:
    class Maps:
        def __call__(self, image: Any, output_type: str = "np") -> None:
            """Never called."""

    first, last = guessed_calls(Maps(), None, Sizes(), 3, {})
    assert (first["output_type"], last.keys()) == ("latent", {"image"})


def test_sizes_go_to_the_call_or_to_its_images() -> None:
    first, second = guessed_calls(Films(), None, Sizes(height=32, frames=5, batch=2), 3, {})
    assert (first["height"], first["num_frames"], len(first["prompt"])) == (32, 5, 2)
    assert "width" not in first
    assert (len(second["video"]), second["video"][0].size) == (5, (96, 32))
    edits = next(guessed_calls(Edits(), None, Sizes(height=32, width=48), 3, {}))
    assert edits["image"].size == (48, 32)
    with pytest.raises(UsageError, match="makes images, which have no frames"):
        next(guessed_calls(Edits(), None, Sizes(frames=3), 3, {}))
    with pytest.raises(UsageError, match="Embeds takes no width; leave --width out"):
        next(guessed_calls(Embeds(), None, Sizes(width=32), 3, {}))


def test_what_cannot_be_guessed_is_named_and_what_is_given_is_taken() -> None:
    (call,) = guessed_calls(Embeds(), None, Sizes(), 3, {})
    assert missing_arguments(Embeds(), call) == ["image_embeds"]
    (call,) = guessed_calls(Embeds(), None, Sizes(), 3, {"image_embeds": 1})
    assert call == {"image_embeds": 1}
