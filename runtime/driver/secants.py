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
class SecantSpan:
    """What secants together say of a change along any direction, by least squares.

    Attributes:
        shares: (rows, secants, elements), which make of a change the share of each secant in it.
        rests: (rows, elements, secants), the output's change along each beyond the sensitivity's, per unit.
    """

    shares: torch.Tensor
    rests: torch.Tensor

    @staticmethod
    def of(secants: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> SecantSpan:
        """That of one secant or more, each a direction of the latent and a rest, both (rows, elements)."""
        directions = torch.stack([direction for direction, _ in secants], 1)
        length = directions.norm(dim=2, keepdim=True).clamp_min(1e-10)
        directions = directions / length
        gram = torch.bmm(directions, directions.mT)
        gram.diagonal(dim1=1, dim2=2).add_(RIDGE)
        # no check of the result, for which the host would wait for a GPU: with the ridge no matrix is singular
        inverse, _ = torch.linalg.inv_ex(gram)
        return SecantSpan(torch.bmm(inverse, directions) / length, torch.stack([rest for _, rest in secants], 2))

    def trusted(self, trust: torch.Tensor) -> SecantSpan:
        """The same, of which a row takes only so much. trust: (rows, 1)."""
        return SecantSpan(self.shares * trust.unsqueeze(2), self.rests)

    def rest(self, moved: torch.Tensor) -> torch.Tensor:
        """The change beyond sensitivity·moved, per unit. moved: (rows, elements), as the result."""
        return torch.bmm(self.rests, torch.bmm(self.shares, moved.unsqueeze(2))).squeeze(2)

    def times(self, moved: torch.Tensor, sensitivity: float, unit: float) -> torch.Tensor:
        """The whole change."""
        column = moved.unsqueeze(2)
        shares = torch.bmm(self.shares, column)
        return torch.baddbmm(column, self.rests, shares, beta=sensitivity, alpha=unit).squeeze(2)


class Secants:
    """The derivative of an output by its latent, one matrix per row of the batch. All tensors are (rows, elements).

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
        self._is_scaled = any(sensitivity)
        self._shown: tuple[int, torch.Tensor] | None = None  # the last call; its latent, output and what that missed
        self._change: tuple[int, torch.Tensor] | None = None  # of these, from the call before to that one
        self._secants: list[tuple[torch.Tensor, torch.Tensor]] = []  # direction and rest
        self._told: list[torch.Tensor] = []  # of the last secants, the products that say how far they can be trusted
        self._span: SecantSpan | None = None  # of the secants
        self._trusted: SecantSpan | None = None

    def show(self, latent: torch.Tensor, output: torch.Tensor, call: int, missed: torch.Tensor | None = None) -> None:
        """Take the latent that a call was computed on, and its output; in call order.

        missed: the true latent minus that one; None where all are true ones.
        """
        before, changed = self._shown, self._change
        now = torch.stack([latent, output] if missed is None else [latent, output, missed])
        self._shown, self._change = (call, now), None
        if before is None or before[0] != call - 1:
            return
        change = now - before[1]
        self._change = call, change
        unit = self.unit(call)
        if changed is None or changed[0] != call - 1 or self._is_bent(call) or not unit:
            return
        # what the line through the two before it, over the level, would not have made of each
        direction, second, *bends = torch.add(change, changed[1], alpha=-self._stride(call)).unbind()
        sensitivity = self.sign * self._sensitivity[call]
        rest = torch.add(second, direction, alpha=-sensitivity)
        told = torch.zeros_like(rest) if self._span is None else unit * self._span.rest(direction)
        products = [told * rest, told * told]
        for bend in bends:
            true = direction + bend
            products += [bend * bend, true * true]
        self._told = [*self._told[1 - CHECKED :], torch.stack(products).sum(2, keepdim=True)]
        self._secants = [*self._secants[1 - KEPT :], (direction, rest / unit)]
        self._span = SecantSpan.of(self._secants)
        self._trusted = self._span.trusted(_trust(*torch.stack(self._told).sum(0).unbind()))

    def times(self, moved: torch.Tensor, call: int) -> torch.Tensor:
        """How much a call's output changes if its latent does by ``moved``, to first order."""
        return self._times(moved, self.unit(call))

    def per_unit(self, moved: torch.Tensor) -> torch.Tensor:
        """``times`` over the call's ``unit``: the same for all calls."""
        return self._times(moved, 1.0)

    def unit(self, call: int) -> float:
        """What ``times`` is in proportion to from call to call: the sensitivity; 1 where that is 0 at all calls."""
        return self.sign * self._sensitivity[call] if self._is_scaled else 1.0

    def _times(self, moved: torch.Tensor, unit: float) -> torch.Tensor:
        sensitivity = unit if self._is_scaled else 0.0
        return sensitivity * moved if self._trusted is None else self._trusted.times(moved, sensitivity, unit)

    def _is_bent(self, call: int) -> bool:
        """Whether the last three calls tell nothing: a new level after two calls at one, where no line is known."""
        apart = [abs(self._level[k] - self._level[k - 1]) > 1e-9 for k in (call - 1, call)]
        return apart == [False, True]

    def _stride(self, call: int) -> float:
        """The last move over the level, in those of the one before; 0 where that was none."""
        before = self._level[call - 1] - self._level[call - 2]
        return (self._level[call] - self._level[call - 1]) / before if abs(before) > 1e-9 else 0.0


def _trust(
    shared: torch.Tensor, norm: torch.Tensor, bend: torch.Tensor | None = None, true: torch.Tensor | None = None
) -> torch.Tensor:
    """How far the secants would have told those that came after them, from 0 to 1, by row: (rows, 1).

    Args:
        shared, norm: of what was told the products with what came, and with itself, summed.
        bend, true: squares of the trajectory's bend and of what was missed, where that is known.
    """
    trust = (shared / norm.clamp_min(1e-30)).clamp(0.0, 1.0)
    if bend is None or true is None:
        return trust
    return trust * bend / torch.add(bend, true, alpha=CURVATURE).clamp_min(1e-30)


def flat(values: torch.Tensor) -> torch.Tensor:
    """(rows, elements), in float32."""
    return values.float().flatten(1)
