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
    """Along ``direction`` the output changes by sensitivity·direction + rest; tensors are (rows, elements).

    Attributes:
        direction: of the latent.
        rest: of the output; over the sensitivity, unless that is 0.
        sensitivity: at the call that showed it.
    """

    direction: torch.Tensor
    rest: torch.Tensor
    sensitivity: float


class SecantSpan:
    """What secants together say of a change along any direction, by least squares.

    Args:
        secants: one or more.
    """

    def __init__(self, secants: Sequence[Secant]) -> None:
        directions = torch.stack([secant.direction for secant in secants], 1)  # (rows, secants, elements)
        length = directions.norm(dim=2, keepdim=True).clamp_min(1e-10)
        directions = directions / length
        ridge = RIDGE * torch.eye(len(secants), dtype=directions.dtype, device=directions.device)
        # no check of the result, for which the host would wait for a GPU: with the ridge no matrix is singular
        inverse, _ = torch.linalg.inv_ex(torch.bmm(directions, directions.mT) + ridge)
        self._shares = torch.bmm(inverse, directions) / length
        self._rests = torch.stack([secant.rest for secant in secants], 2)  # (rows, elements, secants)
        self._is_scaled = [secant.sensitivity != 0.0 for secant in secants]

    def rest(self, moved: torch.Tensor, sensitivity: float) -> torch.Tensor:
        """The change beyond sensitivity·moved where that is the sensitivity. moved: (rows, elements), as the result."""
        shares = torch.bmm(self._shares, moved.unsqueeze(2))
        if all(self._is_scaled):
            shares = sensitivity * shares
        elif any(self._is_scaled):
            scales = [sensitivity if scaled else 1.0 for scaled in self._is_scaled]
            shares = torch.tensor(scales, dtype=shares.dtype, device=shares.device)[:, None] * shares
        return torch.bmm(self._rests, shares).squeeze(2)


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
        self._span: SecantSpan | None = None  # of the secants
        self._trust: torch.Tensor | None = None  # in it, by row

    def show(self, latent: torch.Tensor, output: torch.Tensor, call: int, missed: torch.Tensor | None = None) -> None:
        """Take the latent that a call was computed on, and its output, of the latent's shape; in call order.

        missed: the true latent minus that one; None where all are true ones.
        """
        self._shown = [*self._shown[-2:], (call, _flat(latent), _flat(output))]
        if missed is not None:
            self._missed = [*self._missed[-2:], _flat(missed)]
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
        if self._span is not None:
            told = self._span.rest(direction, sensitivity)
            self._told = [*self._told[1 - CHECKED :], (_inner(told, rest), _inner(told, told))]
            self._trust = self._trusted()
        secant = Secant(direction, rest / sensitivity if sensitivity else rest, sensitivity)
        self._secants = [*self._secants[1 - KEPT :], secant]
        self._span = SecantSpan(self._secants)

    def times(self, moved: torch.Tensor, call: int) -> torch.Tensor:
        """How much a call's output changes if its latent does by ``moved``, to first order."""
        flat = _flat(moved)
        sensitivity = self.sign * self._sensitivity[call]
        change = sensitivity * flat
        if self._span is not None and self._trust is not None:
            change = change + self._trust[:, None] * self._span.rest(flat, sensitivity)
        return change.view(moved.shape)

    def _trusted(self) -> torch.Tensor:
        """How far the secants would have told those that came after them, from 0 to 1, by row."""
        shared, norm = sums(self._told)
        trust = (shared / norm.clamp_min(1e-30)).clamp(0.0, 1.0)
        if not self._bends:
            return trust
        bend, true = sums(self._bends)
        return trust * bend / (bend + CURVATURE * true).clamp_min(1e-30)

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


def sums(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the first of all pairs, and that of the second."""
    return torch.stack([first for first, _ in pairs]).sum(0), torch.stack([second for _, second in pairs]).sum(0)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(1)


def _flat(values: torch.Tensor) -> torch.Tensor:
    """(rows, elements), in float32."""
    return values.detach().float().flatten(1)


def per_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One value per row, in a shape that multiplies a tensor of such rows."""
    return values.view(-1, *(1,) * (like.dim() - 1))
