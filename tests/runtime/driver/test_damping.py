"""Damping: the share of a foreseen change that would have told best what came."""

from __future__ import annotations

import pytest
import torch

from runtime.driver.damping import damping_of, told_by


def test_it_is_of_each_row_by_least_squares_over_all_that_is_known() -> None:
    change = torch.tensor([[[1.0, 2.0]], [[1.0, -1.0]], [[3.0, 0.0]]])
    shares = torch.tensor([[[0.5]], [[-2.0]], [[7.0]]])
    told = [told_by(share * change, change) for share in (shares, 0.5 * shares)]
    assert told[0].shape == (3, 2, 1)
    torch.testing.assert_close(damping_of(told, change), torch.tensor([[[0.375]], [[0.0]], [[1.0]]]))


@pytest.mark.parametrize("told", [[], [torch.zeros(2, 2, 1)]], ids=["nothing known", "nothing changed"])
def test_it_is_one_where_nothing_is_known(told: list[torch.Tensor]) -> None:
    assert torch.equal(damping_of(told, torch.randn(2, 1, 5)), torch.ones(2, 1, 1))
