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
the bend: one factor from 0 to 1 per row. Where two calls at one level are foreseen with one latent, as those of Heun's
method may be, d is rounding and nothing else, while outputs differ: that is no secant.

A vector is (rows, 1, elements) here, so that several of a row lie side by side and are multiplied in one go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.driver.damping import NOTHING

KEPT, CHECKED = 4, 6  # secants that stand for J, and those that their trust is fitted to
RIDGE = 0.02  # of the squared length of a direction
CURVATURE = 0.1  # how much less than what predictions missed the bend of the trajectory may be for full trust
SHORT = 1e-20  # a squared length; what is shorter tells nothing
LONGEST = 10.0  # how many times its own direction a secant corrects for; of more it says nothing
ROUNDING = 1e-4  # of the latent's change before; a direction that is shorter is what rounding has left of none


class SecantSpan:
    """What the last KEPT secants together say of a change along any direction, by least squares.

    Each is a direction of the latent and a rest, the output's change along it beyond the sensitivity's. Both are of the
    call that has shown it, whose unit the direction is multiplied by, so that shares of it are per unit.

    Args:
        like: (rows, 1, elements).

    Attributes:
        shares: (rows, elements, secants), which make of a change the share of each secant in it.
        rests: (rows, secants, elements).
    """

    def __init__(self, like: torch.Tensor) -> None:
        rows, _, elements = like.shape
        # what no secant was put into yet has no direction, and so no share in anything
        self.rests = like.new_zeros(rows, KEPT, elements)
        self._directions = torch.zeros_like(self.rests)
        self._turned = self.shares = self._directions.mT
        self._ridge = 1.0 + RIDGE * torch.eye(KEPT, dtype=like.dtype, device=like.device)
        self._short = SHORT * torch.eye(KEPT, dtype=like.dtype, device=like.device)
        self._places = list(zip(self._directions.chunk(KEPT, 1), self.rests.chunk(KEPT, 1), strict=True))
        self._count = 0

    def add(self, direction: torch.Tensor, change: torch.Tensor, sensitivity: float, unit: float) -> torch.Tensor:
        """Take a secant in place of the oldest one; gives its rest, which is kept until KEPT others have come."""
        kept, rest = self._places[self._count % KEPT]
        self._count += 1
        torch.mul(direction, unit, out=kept)
        torch.add(change, direction, alpha=-sensitivity, out=rest)
        gram = torch.bmm(self._directions, self._turned)
        # no check of the result, for which the host would wait for a GPU: with the ridge no matrix is singular
        inverse, _ = torch.linalg.inv_ex(torch.addcmul(self._short, gram, self._ridge))
        self.shares = torch.bmm(self._turned, inverse)
        return rest


class Secants:
    """The derivative of an output by its latent, one matrix per row of the batch.

    Args:
        level: of each call.
        sensitivity: of each call, the derivative where no secant says otherwise.

    Attributes:
        sign: what ``sensitivity`` is multiplied by; -1 where outputs are turned round.

    >>> secants = Secants((3.0, 2.0, 1.0, 0.0), (0.0,) * 4)
    >>> for call, x in enumerate([0.0, 1.0, 0.0, 1.0]):
    ...     secants.show([torch.tensor([[[x]]]), torch.tensor([[[2 * x]]])], call)
    >>> round(float(secants.times(torch.tensor([[[0.1]]]), 3)), 3)
    0.198
    """

    def __init__(self, level: Sequence[float], sensitivity: Sequence[float]) -> None:
        self.sign = 1.0
        self._level, self._sensitivity = level, sensitivity
        self._is_scaled = any(sensitivity)
        self._shown: tuple[int, torch.Tensor] | None = None  # the last call, and what was shown of it
        self._change: tuple[int, torch.Tensor] | None = None  # of that, from the call before
        self._products: list[torch.Tensor] = []  # of the last secants, that say how far they can be trusted
        self._span: SecantSpan | None = None
        self._trusted: torch.Tensor | None = None  # the span's shares, of which a row takes only so much

    def show(self, vectors: Sequence[torch.Tensor], call: int) -> None:
        """Take the latent that a call was computed on, its output and, where that is not the true one, what it missed
        and the true one; in call order.
        """
        before, now = self._shown, torch.cat(list(vectors), 1)
        self._shown = call, now
        if before is not None and before[0] == call - 1:
            self.show_change(now - before[1], call)

    def show_change(self, change: torch.Tensor, call: int) -> None:
        """Take what ``show`` takes as changes from the call before, behind each other: (rows, 2 or 4, elements)."""
        changed, self._change = self._change, (call, change)
        unit = self.unit(call)
        if changed is None or changed[0] != call - 1 or self._is_bent(call) or not unit:
            return
        # what the line through the two before it, over the level, would not have made of each
        differences = torch.add(change, changed[1], alpha=-self._stride(call))
        direction, answer, *bends = differences.chunk(change.shape[1], 1)
        is_known = _length(direction) > ROUNDING * _length(changed[1][:, :1])
        direction, answer = direction * is_known, answer * is_known
        if self._span is None:
            self._span = SecantSpan(direction)
        told = torch.baddbmm(answer, torch.bmm(direction, self._span.shares), self._span.rests, beta=0.0, alpha=unit)
        rest = self._span.add(direction, answer, self.sign * self._sensitivity[call], unit)
        vectors = torch.cat([told, rest, *bends], 1)
        self._products = [*self._products[1 - CHECKED :], torch.bmm(vectors, vectors.mT)]
        self._trusted = self._span.shares * _trust(torch.stack(self._products).sum(0))

    def times(self, moved: torch.Tensor, call: int, share: torch.Tensor | None = None) -> torch.Tensor:
        """How much a call's output changes if its latent does by ``moved``, to first order.

        share: how much of what secants say beyond the sensitivity is taken, (rows, 1, 1), and no secant for more than
            LONGEST of its direction; None for all.
        """
        return self._times(moved, self.unit(call), share)

    def per_unit(self, moved: torch.Tensor) -> torch.Tensor:
        """``times`` over the call's ``unit``: the same for all calls."""
        return self._times(moved, 1.0)

    def unit(self, call: int) -> float:
        """What ``times`` is in proportion to from call to call: the sensitivity; 1 where that is 0 at all calls."""
        return self.sign * self._sensitivity[call] if self._is_scaled else 1.0

    def _times(self, moved: torch.Tensor, unit: float, share: torch.Tensor | None = None) -> torch.Tensor:
        sensitivity = unit if self._is_scaled else 0.0
        if self._span is None or self._trusted is None:
            return sensitivity * moved
        shares = torch.bmm(moved, self._trusted)
        if share is not None:
            most = LONGEST / abs(unit) if unit else 0.0
            shares = (shares * share).clamp(-most, most)
        return torch.baddbmm(moved, shares, self._span.rests, beta=sensitivity, alpha=unit)

    def _is_bent(self, call: int) -> bool:
        """Whether the last three calls tell nothing: a new level after two calls at one, where no line is known."""
        apart = [abs(self._level[k] - self._level[k - 1]) > 1e-9 for k in (call - 1, call)]
        return apart == [False, True]

    def _stride(self, call: int) -> float:
        """The last move over the level, in those of the one before; 0 where that was none."""
        before = self._level[call - 1] - self._level[call - 2]
        return (self._level[call] - self._level[call - 1]) / before if abs(before) > 1e-9 else 0.0


def _trust(products: torch.Tensor) -> torch.Tensor:
    """How far the secants would have told those that came after them, from 0 to 1, by row: (rows, 1, 1).

    products: with each other, summed, of what was told, of what came, and where latents were not the true ones of the
        bend of what they missed and of the true ones: (rows, 2 or 4, 2 or 4).
    """
    rows, count, _ = products.shape
    norm, shared, *others = products.view(rows, count * count, 1, 1).unbind(1)
    trust = (shared / norm.clamp_min(NOTHING)).clamp(0.0, 1.0)
    if count == 2:
        return trust
    bend, true = others[2 * count], others[3 * count + 1]  # on the diagonal
    return trust * bend / torch.add(bend, true, alpha=CURVATURE).clamp_min(NOTHING)


def _length(vectors: torch.Tensor) -> torch.Tensor:
    """Of each, (rows, vectors, 1)."""
    length: torch.Tensor = torch.linalg.vector_norm(vectors, dim=2, keepdim=True)
    return length


def flat(values: torch.Tensor) -> torch.Tensor:
    """(rows, 1, elements), in float32."""
    return values.float().reshape(len(values), 1, -1)
