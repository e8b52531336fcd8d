"""DenoiserChanges: what is done to a denoiser between two calls, and which of its tensors may hold other values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from runtime.driver.denoiser_changes import TAKEN_OVER, DenoiserChange, DenoiserChanges


@pytest.fixture
def denoiser() -> Any:
    return nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))


def names(change: DenoiserChange | None, denoiser: nn.Module) -> set[str]:
    assert change is not None
    path = {id(tensor): name for name, tensor in denoiser.named_parameters()}
    return {path[id(tensor)] for tensor in change.written}


def test_nothing_is_found_where_nothing_was_done(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    denoiser[1].in_features = int("2")  # an equal number
    assert changes.found(thorough=False) is None
    assert changes.found(thorough=True) is None


def test_a_write_is_found_once(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    with torch.no_grad():
        denoiser[1].weight.mul_(2)
    change = changes.found(thorough=False)
    assert names(change, denoiser) == {"1.weight"}
    assert change is not None
    assert not change.differences
    assert changes.found(thorough=True) is None


def test_a_write_by_data_is_found_where_a_trajectory_starts(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    denoiser[0][1].weight.data.mul_(2)
    assert changes.found(thorough=False) is None
    assert names(changes.found(thorough=True), denoiser) == {"0.1.weight"}


def test_a_tensor_that_is_no_parameter_may_be_a_constant_of_the_graph(denoiser: Any) -> None:
    denoiser[1].table = torch.ones(3)
    changes = DenoiserChanges(denoiser, frozenset())
    denoiser[1].table.mul_(2)
    change = changes.found(thorough=False)
    assert change is not None
    assert [str(each) for each in change.differences] == ["a tensor of shape [3] beside parameters of module <root>"]


def test_another_dtype_is_another_graph(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    denoiser[1].half()
    change = changes.found(thorough=False)
    assert names(change, denoiser) == {"1.weight", "1.bias"}
    assert change is not None
    assert str(change.differences[0]) == (
        "a parameter that is torch.float16[2, 2] now, requires_grad=True of module <root>"
    )


def test_whether_gradients_are_required_is_found_once_and_nothing_need_be_sent(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    denoiser[1].weight.requires_grad_(False)
    change = changes.found(thorough=False)
    assert names(change, denoiser) == set()
    assert change is not None
    assert [difference.is_part for difference in change.differences] == [True]
    assert changes.found(thorough=True) is None


def test_what_a_changed_module_holds_may_have_been_written_to(denoiser: Any) -> None:
    """A layer of PEFT that was merged: its weight's version and place are as before."""
    changes = DenoiserChanges(denoiser, frozenset())
    denoiser[0].merged_adapters = ["default"]
    denoiser.lora_scale = 1.0  # of the whole denoiser: that alone tells nothing of the layers
    change = changes.found(thorough=False)
    assert names(change, denoiser) == {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"}


def test_a_module_around_a_layer_does_not_write_to_it(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    denoiser[1] = nn.Sequential(denoiser[1])
    change = changes.found(thorough=False)
    assert names(change, denoiser) == set()
    assert change is not None
    assert [str(difference) for difference in change.differences] == ["submodule 1 of module <root>"]


def test_what_the_engine_itself_does_is_none(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, TAKEN_OVER)
    denoiser.forward = lambda *_args: None
    denoiser.register_forward_hook(lambda *_args: None)
    assert changes.found(thorough=False) is None
    denoiser[1].weight.data = denoiser[1].weight.detach().clone()
    changes.settle()
    assert changes.found(thorough=True) is None
