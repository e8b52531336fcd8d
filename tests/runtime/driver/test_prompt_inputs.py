"""PromptInputs: a change of the conditions is noticed, however it was made."""

from __future__ import annotations

import torch

from runtime.driver.prompt_inputs import PromptInputs
from tests.support.engines import Trajectory
from tests.support.toy_plans import GRAPHS


def test_a_prompt_has_changed_if_its_values_have() -> None:
    graph, prompts = GRAPHS[2](), PromptInputs()
    inputs = Trajectory().inputs(0)
    assert prompts.changed(graph, inputs)
    assert not prompts.changed(graph, inputs)
    assert not prompts.changed(graph, {**inputs, "context": inputs["context"].clone()})
    assert not prompts.changed(graph, {**inputs, "x": inputs["x"] + 1, "t": inputs["t"] - 1})
    assert not prompts.changed(graph, inputs)
    inputs["context"].add_(1)
    assert prompts.changed(graph, inputs)
    assert prompts.changed(graph, {**inputs, "context": inputs["context"].double()})


def test_an_inference_tensor_that_is_written_to_is_noticed() -> None:
    """It has no version counter."""
    graph, prompts = GRAPHS[2](), PromptInputs()
    with torch.inference_mode():
        context = torch.ones(2, 6)
        inputs = {**Trajectory().inputs(0), "context": context}
        assert prompts.changed(graph, inputs)
        assert not prompts.changed(graph, inputs)
        context.neg_()
        assert prompts.changed(graph, inputs)
