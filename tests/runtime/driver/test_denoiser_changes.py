"""DenoiserChanges: what is done to a denoiser between two calls, and which of its tensors may hold other values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from runtime.driver.denoiser_changes import KEPT, TAKEN_OVER, DenoiserChange, DenoiserChanges


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
    assert changes.was_written()
    change = changes.found(thorough=False)
    assert not changes.was_written()
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


def test_what_is_written_by_data_beside_another_change_is_found_with_it(denoiser: Any) -> None:
    """A layer of PEFT that was merged: its weight's version and place are as before."""
    changes = DenoiserChanges(denoiser, frozenset())
    denoiser[0].merged_adapters = ["default"]
    denoiser[0][1].weight.data[0, 1] += 1e-6
    change = changes.found(thorough=False)
    assert names(change, denoiser) == {"0.1.weight"}


def test_no_write_by_data_is_taken_for_what_was_there(denoiser: Any) -> None:
    """One that is made just before something else is found, or before an engine itself moves tensors."""
    changes = DenoiserChanges(denoiser, frozenset())
    denoiser[0][1].weight.data[0, 1] += 1e-6
    denoiser[1].weight.data = denoiser[1].weight.detach().clone()
    changes.settle()
    assert names(changes.found(thorough=True), denoiser) == {"0.1.weight"}
    assert changes.found(thorough=True) is None


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


class Skipping:
    """As what skips a layer in some calls."""

    def __init__(self, scale: float = 0.0) -> None:
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_a_denoiser_that_is_this_and_that_by_turns_is_known_again(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    numbers = [changes.state]
    for scale in (0.0, 0.5, 0.0, 0.5):
        denoiser[0][1].forward = Skipping(scale).forward
        change = changes.found(thorough=False)
        assert change is not None
        assert change.turned
        assert not change.written
        numbers.append(change.state)
        del denoiser[0][1].forward
        change = changes.found(thorough=False)
        assert change is not None
        numbers.append(change.state)
        assert changes.found(thorough=False) is None
    plain, skips, scales = numbers[0], numbers[1], numbers[3]
    assert numbers == [plain, skips, plain, scales, plain, skips, plain, scales, plain]
    assert len({plain, skips, scales}) == 3


def test_only_the_last_states_are_kept(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    numbers = []
    for scale in (*range(KEPT + 1), 0):
        denoiser[1].forward = Skipping(scale).forward
        change = changes.found(thorough=False)
        assert change is not None
        numbers.append(change.state)
    assert len(set(numbers)) == KEPT + 2


def test_a_write_beside_a_turn_is_told_and_one_by_data_makes_it_something_new(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    denoiser[1].forward = Skipping().forward
    with torch.no_grad():
        denoiser[1].weight.mul_(2)
    change = changes.found(thorough=False)
    assert change is not None
    assert change.turned
    assert names(change, denoiser) == {"1.weight"}
    denoiser[0][0].forward = Skipping().forward
    denoiser[0][1].bias.data.add_(1)
    change = changes.found(thorough=False)
    assert change is not None
    assert not change.turned
    assert names(change, denoiser) == {"0.1.bias"}


def test_a_write_does_not_make_states_unknown(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    plain = changes.state
    denoiser[1].forward = Skipping().forward
    changes.found(thorough=False)
    with torch.no_grad():
        denoiser[0][0].weight.mul_(2)
    change = changes.found(thorough=False)
    assert change is not None
    assert not change.differences
    del denoiser[1].forward
    change = changes.found(thorough=False)
    assert change is not None
    assert change.state == plain


def test_scaled_adapters_are_no_write_and_merged_ones_are(denoiser: Any) -> None:
    layer = denoiser[1]
    layer.scaling = {"default": 1.0}
    changes = DenoiserChanges(denoiser, frozenset())
    for scale in (0.5, 1.0, 0.5, 1.0):
        layer.scaling["default"] = scale
        change = changes.found(thorough=False)
        assert change is not None
        assert change.turned
        assert names(change, denoiser) == set()
    layer.merged = ["default"]
    layer.weight.data[0, 1] += 1e-6
    change = changes.found(thorough=False)
    assert change is not None
    assert not change.turned
    assert names(change, denoiser) == {"1.weight"}


def test_whether_gradients_are_required_is_part_of_a_state(denoiser: Any) -> None:
    changes = DenoiserChanges(denoiser, frozenset())
    states = [changes.state]
    for required in (False, True, False):
        denoiser[1].weight.requires_grad_(required)
        change = changes.found(thorough=False)
        assert change is not None
        assert change.turned
        states.append(change.state)
    assert states[0] == states[2]
    assert states[1] == states[3] != states[0]
