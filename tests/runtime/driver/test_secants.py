"""Secants: outputs that answer differently along different directions are told from a few calls."""

from __future__ import annotations

import torch

from runtime.driver.secants import Secants

LEVELS = tuple(float(20 - k) for k in range(21))


def shown(secants: Secants, matrix: torch.Tensor, swing: torch.Tensor, *, bend: float = 0.0, calls: int = 8) -> None:
    """Show calls whose true latents are on a parabola of the level, computed on latents that swing around them."""
    for call in range(calls):
        true = bend * LEVELS[call] ** 2 * torch.ones_like(swing)
        missed = -swing * (-1.0) ** call
        secants.show([true - missed, (true - missed) @ matrix.T, missed, true], call)


def test_a_direction_that_was_seen_has_its_own_derivative_and_others_have_the_given_one() -> None:
    matrix = torch.diag(torch.tensor([7.0, 7.0, 1.0, 1.0]))
    secants = Secants(LEVELS, (1.0,) * 21)
    shown(secants, matrix, torch.tensor([[[1.0, -1.0, 0.0, 0.0]]]))
    seen, unseen = torch.tensor([[[0.1, -0.1, 0.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 0.1, 0.0]]])
    torch.testing.assert_close(secants.times(seen, 8), 7 * seen, rtol=0.15, atol=1e-6)
    torch.testing.assert_close(secants.times(unseen, 8), unseen)


def test_each_row_has_its_own() -> None:
    secants = Secants(LEVELS, (1.0,) * 21)
    for call in range(8):
        x = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]) * (-1.0) ** call
        secants.show([x, x * torch.tensor([[[3.0]], [[0.2]]]), -x, torch.zeros_like(x)], call)
    change = secants.times(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]), 8)
    torch.testing.assert_close(change[:, 0, 0], torch.tensor([3.0, 0.2]), rtol=0.15, atol=0.1)


def test_the_bend_of_a_trajectory_is_not_taken_for_an_answer() -> None:
    """Where predictions missed by little beside the trajectory's bend the given derivative stays."""
    secants = Secants(LEVELS, (1.0,) * 21)
    shown(secants, torch.diag(torch.tensor([7.0, 7.0])), torch.full((1, 1, 2), 1e-4), bend=1.0)
    moved = torch.tensor([[[0.1, 0.1]]])
    torch.testing.assert_close(secants.times(moved, 8), moved, rtol=1e-2, atol=1e-4)


def test_calls_that_do_not_follow_each_other_show_nothing() -> None:
    secants = Secants(LEVELS, (1.0,) * 21)
    for call in (0, 1, 3, 4, 6):
        secants.show([torch.randn(1, 1, 3), torch.randn(1, 1, 3)], call)
    assert torch.equal(secants.times(torch.ones(1, 1, 3), 7), torch.ones(1, 1, 3))


def test_what_rounding_left_of_a_direction_is_no_secant() -> None:
    """Heun's two calls at a level may be foreseen with one latent, while their outputs differ."""
    levels = (8.0, 7.0, 7.0, 6.0, 6.0, 5.0, 5.0, 4.0, 4.0)
    secants = Secants(levels, (1.0,) * 9)
    for call in range(7):
        latent = torch.tensor([[[levels[call], 1.0]]]) + 1e-7 * (-1.0) ** call
        output = torch.tensor([[[2.0 * levels[call], 0.1 * (-1.0) ** call]]])
        secants.show([latent, output, torch.full((1, 1, 2), 0.1 * (-1.0) ** call), torch.zeros(1, 1, 2)], call)
    moved = torch.tensor([[[0.1, 0.1]]])
    torch.testing.assert_close(secants.times(moved, 7), moved, rtol=0.0, atol=1e-3)


def test_a_correction_takes_no_secant_for_many_times_its_length() -> None:
    secants = Secants(LEVELS, (1.0,) * 21)
    shown(secants, torch.diag(torch.tensor([7.0, 7.0])), torch.full((1, 1, 2), 1e-4))
    near, far, share = torch.full((1, 1, 2), 1e-4), torch.full((1, 1, 2), 1.0), torch.ones(1, 1, 1)
    torch.testing.assert_close(secants.times(near, 8, share), 7 * near, rtol=0.15, atol=0.0)
    assert float(secants.times(far, 8, share).max()) < 1.1, "a few times of what was seen, and the sensitivity"
