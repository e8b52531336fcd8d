"""Secants: how a denoiser's output answers to a change of its latent, seen from calls that have been made.

A correction for the error of a foreseen latent needs J·missed, J the derivative of the output by the latent. What one
number says of J (``sensitivity``: the best denoiser's of Gaussian clean latents) is right for a denoiser that knows
what is drawn. It is far off for one that does not, such as a guidance batch's half without the prompt: along the
directions in which pictures differ its output hardly changes. Guidance multiplies the difference of the halves, and so
the error.

Where it matters J shows itself. Foreseen latents x̂ miss by turns, so that the outputs of consecutive calls differ by
what J makes of that. The second differences over the level, in which whatever changes linearly cancels,

    d = Δ²x̂,    y = Δ²output,    y ≈ J·d

are a secant of J. The last few of them, by least squares, stand for J along their directions, and ``sensitivity`` along
all others. Where the trajectory is smooth and predictions are good, d is mostly its bend and says little of J. So
secants are trusted as far as those before a secant would have told it, and as what predictions missed is large beside
the bend: one factor from 0 to 1 per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

KEPT, CHECKED = 4, 6  # secants that stand for J, and those that their trust is fitted to
RIDGE = 0.02  # of the squared length of a direction
CURVATURE = 0.1  # how much less than what predictions missed the bend of the trajectory may be for full trust


@dataclass(frozen=True)
class Secant:
    """Along ``direction`` the output changes by sensitivity·direction + ``rest``; all tensors rows first."""

    direction: torch.Tensor
    rest: torch.Tensor
    sensitivity: float


class Secants:
    """The derivative of an output by its latent, one matrix per row of the batch.

    Args:
        level: of each call.
        sensitivity: of each call, the derivative where no secant says otherwise.

    Attributes:
        sign: what ``sensitivity`` is multiplied by; -1 where outputs are turned round.

    >>> secants = Secants((3.0, 2.0, 1.0, 0.0), (0.0,) * 4)
    >>> for call, x in enumerate([0.0, 1.0, 0.0, 1.0]):
    ...     secants.show(torch.tensor([[x]]), torch.tensor([[2 * x]]), call)
    >>> round(float(secants.times(torch.tensor([[0.1]]), 3)), 3)
    0.198
    """

    def __init__(self, level: Sequence[float], sensitivity: Sequence[float]) -> None:
        self.sign = 1.0
        self._level, self._sensitivity = level, sensitivity
        self._shown: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # the last three: call, latent, output
        self._secants: list[Secant] = []
        self._missed: list[torch.Tensor] = []  # by the last three latents
        self._bends: list[tuple[torch.Tensor, torch.Tensor]] = []  # squares of what was missed and of the trajectory's
        self._told: list[tuple[torch.Tensor, torch.Tensor]] = []  # of the last secants, what those before told of them

    def show(self, latent: torch.Tensor, output: torch.Tensor, call: int, missed: torch.Tensor | None = None) -> None:
        """Take the latent that a call was computed on, and its output, of the latent's shape; in call order.

        missed: the true latent minus that one; None where all are true ones.
        """
        self._shown = [*self._shown[-2:], (call, latent.detach().float(), output.detach().float())]
        if missed is not None:
            self._missed = [*self._missed[-2:], missed.float()]
        calls = [shown for shown, _, _ in self._shown]
        if calls != [call - 2, call - 1, call] or self._is_bent(call):
            return
        direction = self._second(*(latent for _, latent, _ in self._shown))
        sensitivity = self.sign * self._sensitivity[call]
        rest = self._second(*(output for _, _, output in self._shown)) - sensitivity * direction
        if missed is not None:
            bend = self._second(*self._missed)
            true = direction + bend
            self._bends = [*self._bends[1 - CHECKED :], (_inner(bend, bend), _inner(true, true))]
        if self._secants:
            told = self._rest(direction, call)
            self._told = [*self._told[1 - CHECKED :], (_inner(told, rest), _inner(told, told))]
        self._secants = [*self._secants[1 - KEPT :], Secant(direction, rest, sensitivity)]

    def times(self, moved: torch.Tensor, call: int) -> torch.Tensor:
        """How much a call's output changes if its latent does by ``moved``, to first order."""
        moved = moved.float()
        change = self.sign * self._sensitivity[call] * moved
        if not self._told:
            return change
        shared, norm = sums(self._told)
        trust = (shared / norm.clamp_min(1e-30)).clamp(0.0, 1.0)
        if self._bends:
            bend, true = sums(self._bends)
            trust = trust * bend / (bend + CURVATURE * true).clamp_min(1e-30)
        return change + per_row(trust, moved) * self._rest(moved, call)

    def _is_bent(self, call: int) -> bool:
        """Whether the last three calls tell nothing: a new level after two calls at one, where no line is known."""
        apart = [abs(self._level[k] - self._level[k - 1]) > 1e-9 for k in (call - 1, call)]
        return apart == [False, True]

    def _second(self, oldest: torch.Tensor, older: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
        """The newest value less what the line through the two before it, over the level, would make of it."""
        call = self._shown[-1][0]
        before = self._level[call - 1] - self._level[call - 2]
        share = (self._level[call] - self._level[call - 1]) / before if abs(before) > 1e-9 else 0.0
        return newest - older - share * (older - oldest)

    def _rest(self, moved: torch.Tensor, call: int) -> torch.Tensor:
        """What the secants say of a change beyond sensitivity·moved."""
        directions = torch.stack([secant.direction.flatten(1) for secant in self._secants], 1)
        length = directions.norm(dim=2).clamp_min(1e-10)
        directions = directions / length[:, :, None]
        ridge = RIDGE * torch.eye(len(self._secants), device=moved.device)
        # no check of the result, for which the host would wait for a GPU: with the ridge no matrix is singular
        inverse, _ = torch.linalg.inv_ex(directions @ directions.mT + ridge)
        share = (inverse @ (directions @ moved.flatten(1)[:, :, None])).squeeze(2) / length
        made = torch.zeros_like(moved)
        for index, secant in enumerate(self._secants):
            scaled = self.sign * self._sensitivity[call] / secant.sensitivity if secant.sensitivity else 1.0
            made += per_row(share[:, index], moved) * secant.rest * scaled
        return made


def sums(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the first of all pairs, and that of the second."""
    return torch.stack([first for first, _ in pairs]).sum(0), torch.stack([second for _, second in pairs]).sum(0)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).flatten(1).sum(1)


def per_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One value per row, in a shape that multiplies a tensor of such rows."""
    return values.view(-1, *(1,) * (like.dim() - 1))
