"""PromptInputs: a change of the conditions is noticed, however it was made."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from runtime.driver import prompt_inputs
from runtime.driver.prompt_inputs import PromptInputs
from tests.support.engines import Trajectory
from tests.support.toy_plans import GRAPHS


def test_a_prompt_has_changed_if_its_values_have() -> None:
    inputs = Trajectory().inputs(0)
    context = inputs["context"]
    prompts = PromptInputs(GRAPHS[2](), inputs)
    assert not prompts.changed(inputs)
    assert not prompts.changed({**inputs, "context": context.clone()})
    assert not prompts.changed({**inputs, "x": inputs["x"] + 1, "t": inputs["t"] - 1})
    assert prompts.changed({**inputs, "context": context.double()}) == ["context"]
    context.neg_()
    assert prompts.changed(inputs) == ["context"]
    context.neg_()
    assert not prompts.changed(inputs)


@pytest.mark.parametrize("write", [lambda tensor: tensor.data.neg_(), lambda tensor: tensor.numpy().__imul__(-1)])
def test_a_write_that_raises_no_version_is_noticed(
    write: Callable[[torch.Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Trajectory().inputs(0)
    prompts = PromptInputs(GRAPHS[2](), inputs)
    write(inputs["context"])
    assert prompts.changed(inputs) == ["context"]
    monkeypatch.setattr(prompt_inputs, "is_late", lambda tensor: True)
    assert not prompts.changed(inputs), "on a GPU that would be to wait"


def test_an_inference_tensor_that_is_written_to_is_noticed() -> None:
    """It has no version counter."""
    with torch.inference_mode():
        context = torch.ones(2, 6)
        inputs = {**Trajectory().inputs(0), "context": context}
        prompts = PromptInputs(GRAPHS[2](), inputs)
        assert not prompts.changed(inputs)
        context.neg_()
        assert prompts.changed(inputs) == ["context"]


def test_on_a_gpu_an_inference_tensor_that_is_written_to_is_noticed_one_call_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prompt_inputs, "is_late", lambda tensor: True)
    with torch.inference_mode():
        context = torch.ones(2, 6)
        inputs = {**Trajectory().inputs(0), "context": context}
        prompts = PromptInputs(GRAPHS[2](), inputs)
        assert not prompts.changed(inputs)
        context.neg_()
        assert not prompts.changed(inputs)
        assert not caplog.records
        assert prompts.changed(inputs) == ["context"]
        assert "context was written to in torch.inference_mode" in caplog.text
        assert prompts.changed({**inputs, "context": context.clone()}) == ["context"], "another tensor is looked at now"
