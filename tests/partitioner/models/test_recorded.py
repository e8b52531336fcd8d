"""How a pipeline calls its denoiser, found by running it without weights: arguments, roles, guidance."""

from __future__ import annotations

import random
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy
import pytest
import torch

from partitioner.errors import UsageError
from partitioner.graph.nodes import Role
from partitioner.models.call_rows import CallRows
from partitioner.models.find_spec import live_spec, model_spec
from partitioner.models.inputs import ExampleTensor, latent, prompt, timestep
from partitioner.models.recorded import Recording, record
from partitioner.models.sizes import Sizes
from partitioner.models.spec import trace_model
from partitioner.models.stand_ins import StandIns
from partitioner.models.unweighted import twin_of
from tests.support import pipelines
from tests.support.small_models import small_denoiser
from tests.support.undescribed_pipelines import made
from tools.support.pipelines import PIPELINES


def recording_of(pipe: Any, sizes: Sizes | None = None, **given: Any) -> Recording:
    stand_ins = StandIns()
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    return record(twin_of(pipe, stand_ins), part, stand_ins, sizes or Sizes(), given)


def test_a_batch_of_both_halves(tmp_path: Path) -> None:
    recording = recording_of(made("aura_flow", tmp_path), Sizes(height=32, width=48))
    assert (recording.guidance, recording.seen.calls_per_step) == ("batch", 1)
    assert recording.seen.inputs("float32") == {
        "hidden_states": latent(2, 4, 16, 24),
        "encoder_hidden_states": prompt(2, 256, 32),
        "timestep": timestep(2, dtype=None),
    }
    assert recording.half is not None
    assert recording.half.inputs("float32")["hidden_states"] == latent(1, 4, 16, 24)


def test_calls_of_any_number_of_rows_follow_from_recorded_ones(tmp_path: Path) -> None:
    """Of two images with guidance: four rows, the two without guidance that were seen, and parts of the four."""
    pipe = made("aura_flow", tmp_path)
    spec, one = (live_spec(pipe.transformer, pipe, height=32, width=32, batch=batch) for batch in (2, 1))
    assert spec.step == CallRows(4, range(1, 5), 1, 2)
    assert one.step == CallRows(2, range(1, 3), 1, 1)
    assert spec.inputs_for(2) == one.inputs
    assert spec.inputs_for(1) == one.inputs_for(1)
    assert spec.inputs_for(3)["hidden_states"] == latent(3, 4, 16, 16)
    apart = live_spec(pipe.transformer, pipe, height=32, width=32, guidance_style="two-calls")
    assert (apart.step, apart.guidance_style) == (CallRows(1, range(1, 2), 2, 1), "two-calls")
    assert apart.inputs == one.inputs_for(1)
    alone = live_spec(pipe.transformer, pipe, height=32, width=32, guidance_style="none")
    assert (alone.step, alone.inputs) == (CallRows(1, range(1, 2), 1, 1), one.inputs_for(1))
    with pytest.raises(UsageError, match="takes no scale of guidance as an input; its style is batch"):
        live_spec(pipe.transformer, pipe, height=32, width=32, guidance_style="embedded")


def test_a_call_for_one_image_says_which_inputs_go_with_the_rows(tmp_path: Path) -> None:
    """Flux has ids of tokens, in as many rows as there are tokens, whatever the number of images is."""
    pipe = pipelines.MAKERS["flux"](tmp_path)
    described, recorded = (
        live_spec(pipe.transformer, pipe, height=32, width=32, batch=4, call=call) for call in (None, {})
    )
    assert recorded.step == described.step == CallRows(4, range(1, 5), 1, 4)
    for rows in (1, 2, 4):
        assert shown(recorded.inputs_for(rows)) == shown(described.inputs_for(rows))


def test_the_rows_of_images_that_a_given_call_names_are_divided(tmp_path: Path) -> None:
    """By their number for each prompt and by the number of prompts, whatever scale of guidance is given."""
    pipe = made("aura_flow", tmp_path)
    call = {"prompt": ["a lighthouse", "a boat"], "num_images_per_prompt": 2, "guidance_scale": 5.0}
    spec = live_spec(pipe.transformer, pipe, height=32, width=32, call=call)
    assert (spec.step, spec.guidance_style) == (CallRows(8, range(1, 9), 1, 4), "batch")
    off = live_spec(pipe.transformer, pipe, height=32, width=32, call={**call, "guidance_scale": 1.0})
    assert (off.step, off.guidance_style) == (CallRows(4, range(1, 5), 1, 4), "none")


@pytest.mark.parametrize("call", [{"num_images_per_prompt": 2}, {"prompt": ["a lighthouse", "a boat"]}])
def test_ids_of_tokens_do_not_go_with_the_images_that_a_given_call_names(tmp_path: Path, call: dict[str, Any]) -> None:
    pipe = pipelines.MAKERS["flux"](tmp_path)
    assert live_spec(pipe.transformer, pipe, height=32, width=32, call=call).step == CallRows(2, range(1, 3), 1, 2)


@pytest.mark.slow
def test_guidance_in_two_calls(tmp_path: Path) -> None:
    recording = recording_of(made("cogview_4", tmp_path), Sizes(height=32, width=32))
    assert (recording.guidance, recording.seen.calls_per_step, recording.half) == ("two-calls", 2, None)
    assert recording.seen.inputs("float32")["hidden_states"] == latent(1, 4, 16, 16)
    assert recording.seen.roles["encoder_hidden_states"] is Role.PROMPT


@pytest.mark.slow
def test_what_another_module_gives_anew_at_every_step(tmp_path: Path) -> None:
    roles = recording_of(made("control_net", tmp_path)).seen.roles
    assert roles["sample"] is Role.LATENT
    assert roles["encoder_hidden_states"] is Role.PROMPT
    assert roles["mid_block_additional_residual"] is roles["down_block_additional_residuals.0"] is Role.STEP


def test_batch_and_guidance_are_as_asked_for(tmp_path: Path) -> None:
    pipe = made("aura_flow", tmp_path)
    recording = recording_of(pipe, Sizes(height=32, width=32, batch=3, guidance=False))
    assert (recording.guidance, recording.half) == ("none", None)
    assert recording.seen.inputs("float32")["hidden_states"] == latent(3, 4, 16, 16)


def test_a_package_that_a_pipeline_takes_for_installed_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ftfy, which mends texts: what a call looks like does not depend on it."""
    from diffusers.pipelines.aura_flow import pipeline_aura_flow as module

    own = module.AuraFlowPipeline.encode_prompt

    def encode_prompt(self: Any, prompt: str, *more: Any, **others: Any) -> Any:
        return own(self, mender_of_texts.fix_text(prompt), *more, **others)  # type: ignore[name-defined] # noqa: F821

    renamed = FunctionType(encode_prompt.__code__, vars(module), None, None, encode_prompt.__closure__)
    monkeypatch.setattr(module.AuraFlowPipeline, "encode_prompt", renamed)
    recording = recording_of(made("aura_flow", tmp_path), Sizes(height=32, width=32))
    assert recording.guidance == "batch"
    assert "the package mender_of_texts is not installed, and AuraFlowPipeline needs it for its texts" in caplog.text
    assert "mender_of_texts" not in vars(module)


@pytest.mark.slow
def test_what_a_denoiser_keeps_for_its_pipeline_to_read_is_refused(tmp_path: Path) -> None:
    tiny = PIPELINES["StableDiffusionSAGPipeline"]
    pipe = tiny.load(tiny.save(tmp_path))
    with pytest.raises(UsageError, match=r"its call changes attribute processor of module mid_block.*cannot be run so"):
        recording_of(pipe, Sizes(height=32, width=32))


@pytest.mark.slow
def test_nothing_of_the_pipeline_or_of_the_random_state_changes(tmp_path: Path) -> None:
    pipe = made("control_net", tmp_path)
    pipe.scheduler.set_timesteps(7)
    before = {name: dict(vars(value)) for name, value in pipe.components.items() if hasattr(value, "__dict__")}
    own, config, drawn = dict(vars(pipe)), dict(pipe.config), torch.get_rng_state()
    numbers, values = random.getstate(), numpy.random.get_state()[1]
    recording_of(pipe)
    assert vars(pipe) == own
    assert dict(pipe.config) == config
    assert {name: dict(vars(value)) for name, value in pipe.components.items() if hasattr(value, "__dict__")} == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert random.getstate() == numbers
    assert (numpy.random.get_state()[1] == values).all()


def test_arguments_that_cannot_be_guessed_can_be_given(tmp_path: Path) -> None:
    pipe = made("aura_flow", tmp_path)

    def call(self: Any, embeds_of_mine: Any, height: int = 32, width: int = 32, num_inference_steps: int = 4) -> Any:
        given = {"prompt_embeds": embeds_of_mine, "prompt_attention_mask": torch.ones(1, 5), "guidance_scale": 1.0}
        return type(pipe).__call__(self, None, num_inference_steps, height=height, width=width, **given)

    pipe_of_mine = type("PipelineOfMine", (type(pipe),), {"__call__": call})(**pipe.components)
    with pytest.raises(
        UsageError, match=r"PipelineOfMine calls its transformer.*needs embeds_of_mine.*call=\{\.\.\.\}"
    ):
        recording_of(pipe_of_mine)
    recording = recording_of(pipe_of_mine, embeds_of_mine=torch.zeros(1, 5, 32))
    assert recording.seen.inputs("float32")["encoder_hidden_states"] == prompt(1, 5, 32)
    with pytest.raises(UsageError, match=r"takes no colour; it takes embeds_of_mine, height"):
        recording_of(pipe_of_mine, colour=1)


def test_sizes_that_the_pipeline_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="AuraFlowPipeline makes images, which have no frames"):
        recording_of(made("aura_flow", tmp_path), Sizes(frames=3))
    with pytest.raises(UsageError, match=r"`height` and `width` have to be divisible by 4"):
        recording_of(made("aura_flow", tmp_path), Sizes(height=33))


@pytest.mark.parametrize("name", ["aura_flow", pytest.param("cogview_4", marks=pytest.mark.slow)])
def test_a_folder_without_weights_shows_what_the_pipeline_in_memory_shows(name: str, tmp_path: Path) -> None:
    pipe = made(name, tmp_path)
    pipe.save_pretrained(tmp_path / name)
    for path in (tmp_path / name).glob("*/*.safetensors"):
        path.unlink()
    live = live_spec(pipe.transformer, pipe, height=32, width=32)
    folder = model_spec(str(tmp_path / name), height=32, width=32, dtype="float32")
    for field in ("inputs", "step", "guidance_style", "recorded", "dtype", "scheduler_config"):
        assert getattr(folder, field) == getattr(live, field)
    assert folder.scheduler == "FlowMatchEulerDiscreteScheduler"
    assert trace_model(folder).fingerprint == trace_model(live, denoiser=pipe.transformer).fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["StableVideoDiffusionPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline", "WanPipeline", "DDPMPipeline"],
)
def test_recordings_have_the_fingerprint_of_the_descriptions(name: str, tmp_path: Path) -> None:
    tiny = PIPELINES[name]
    pipe = tiny.load(tiny.save(tmp_path))
    part = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    described, recorded = (live_spec(part, pipe, **tiny.sizes(), call=call) for call in (None, {}))
    assert (recorded.recorded is None, described.recorded is None) == (False, True)
    assert (recorded.step, recorded.guidance_style) == (described.step, described.guidance_style)
    fingerprints = {trace_model(spec, denoiser=part).fingerprint for spec in (described, recorded)}
    assert len(fingerprints) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in pipelines.MAKERS if name != "stable_video_diffusion"])
def test_recordings_agree_with_the_descriptions(name: str, tmp_path: Path) -> None:
    pipe = pipelines.MAKERS[name](tmp_path)
    part = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    described = live_spec(part, pipe, height=32, width=32)
    recorded = live_spec(part, pipe, height=32, width=32, call={})
    assert (recorded.recorded is None, described.recorded is None) == (False, True)
    assert recorded.step == described.step
    for rows in described.step.counts:
        assert shown(recorded.inputs_for(rows)) == shown(described.inputs_for(rows))
    assert shown(recorded.inputs) == shown(described.inputs)


def shown(inputs: Any) -> Any:
    """Roles and numbers of dimensions; the texts of small tokenizers are short."""
    if isinstance(inputs, ExampleTensor):
        if inputs.role is Role.PROMPT:
            return inputs.role, len(inputs.shape), inputs.shape[0]
        return inputs.role, inputs.shape
    if isinstance(inputs, dict):
        return {name: shown(value) for name, value in inputs.items() if value != {}}
    return inputs


def test_a_model_alone_is_refused(tmp_path: Path) -> None:
    small_denoiser("sd15").save_config(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"UNet2DConditionModel"', '"AuraFlowTransformer2DModel"')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        UsageError, match="AuraFlowTransformer2DModel, whose arguments are not known, without a pipeline"
    ):
        model_spec(str(tmp_path))
