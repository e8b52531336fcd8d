"""Moves: whether a latent can be what the sampler made of a trajectory's last latents and outputs.

Whatever a sampler does, its step is mostly linear: the next latent lies near the span of the last latent and the last
outputs, each guidance half by itself. What lies outside of the span is noise, or another trajectory's. Least squares
tell its share: measured over diffusers' samplers it is 0 to 0.3 for those without noise, up to 0.75 for those with (and
nearly 1 in the first steps of consistency samplers), and of another trajectory's first latent 0.85 to 1.

Mostly a latent is so near to the last one that this alone explains it. Where only one trajectory may have made it, no
more is looked at then.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy
import torch

from runtime.driver.readback import Readback

Numbers = numpy.ndarray[Any, numpy.dtype[numpy.int64]]
Values = numpy.ndarray[Any, numpy.dtype[numpy.float64]]

ELEMENTS = 1024  # of each row are looked at, evenly spread
OUTPUTS = 2  # how many of the last outputs a step may combine
RIDGE = 1e-12  # of squared lengths, so that vectors may be alike
FOREIGN = 0.8  # more than this share unexplained is another trajectory's, unless this one has had such moves
NEAR = 0.6  # so much less that it is the same for all decisions what smaller share it is


class Moves:
    """The last latent and outputs of one trajectory, thinned out, and how well each latent was explained by them.

    Attributes:
        worst: the largest unexplained share so far; None before the second latent.
    """

    def __init__(self) -> None:
        self.worst: float | None = None
        self._latent: Readback | None = None  # the last one, thinned out
        # the latent that was looked at last, if it was not added yet: the tensor, the part of it, thinned out
        self._seen: tuple[Callable[[], Any], tuple[int, ...], Readback] | None = None
        self._outputs: deque[Readback] = deque(maxlen=OUTPUTS)
        self._part: tuple[int, ...] = ()  # the shape of what latent and output share
        self._taken: tuple[Readback, list[Readback]] | None = None  # a latent to look at, and what was known

    def unexplained(self, latent: torch.Tensor, *, roughly: bool = False) -> float:
        """The share of a latent, from 0 to 1, that no step can have made of what is known; of the worst row. Waits.

        Args:
            latent: as the pipeline passes it, rows first, of the shape of the last one.
            roughly: whether a larger share will do that is not above NEAR either.

        >>> moves, latent, output = Moves(), torch.randn(2, 64), torch.randn(2, 64)
        >>> moves.add(latent, output)
        >>> round(moves.unexplained(0.9 * latent - 0.1 * output), 3), moves.unexplained(torch.randn(2, 64)) > 0.8
        (0.0, True)
        """
        if self._latent is None:
            return 0.0
        thinned = _thinned(latent, self._part)
        self._seen = weakref.ref(latent), self._part, thinned
        if roughly and (share := _turned(thinned, self._latent)) <= NEAR:
            return share
        return _unexplained(thinned, [self._latent, *self._outputs])

    def look_later(self, latent: torch.Tensor) -> None:
        """Take note of the next latent, to be looked at when its values are there; it is added all the same."""
        self._seen = None
        if self._latent is not None:
            self._taken = _thinned(latent, self._part), [self._latent, *self._outputs]

    @property
    def was_foreign(self) -> bool:
        """Whether the latent that was to be looked at later is none of this trajectory; asked at the next call."""
        if self._taken is None:
            return False
        share = _unexplained(*self._taken)
        self._taken = None
        foreign = self.worst is not None and self.is_foreign(share)  # any may be the first
        self.worst = max(share, self.worst or 0.0)
        return foreign

    def is_foreign(self, share: float) -> bool:
        """Whether a latent of which such a share is unexplained is none of this trajectory."""
        return share > max(FOREIGN, 1.1 * (self.worst or 0.0))

    def add(self, latent: torch.Tensor, output: object, share: float | None = None) -> None:
        """Take a call.

        Args:
            latent: that was passed.
            output: the denoiser's; where it is nothing that a latent can be made of, only latents are compared.
            share: of the latent, that was unexplained; None for a trajectory's first.
        """
        if share is not None:
            self.worst = max(share, self.worst or 0.0)
        fits = isinstance(output, torch.Tensor) and output.is_floating_point() and output.dim() == latent.dim()
        if isinstance(output, torch.Tensor) and fits and output.shape[0] == latent.shape[0]:
            self._part = tuple(map(min, latent.shape, output.shape))
            self._outputs.append(_thinned(output, self._part))
        else:
            self._part = latent.shape
        seen, self._seen = self._seen, None
        is_known = seen is not None and seen[0]() is latent and seen[1] == self._part
        self._latent = seen[2] if seen is not None and is_known else _thinned(latent, self._part)


def _thinned(tensor: torch.Tensor, part: tuple[int, ...]) -> Readback:
    """Of the first entries of every dimension, some of each row: [rows, elements]."""
    if tensor.shape != part:
        tensor = tensor[tuple(slice(0, size) for size in part)]
    rows = tensor.reshape(part[0], -1)
    every = -(-rows.shape[1] // ELEMENTS)
    return Readback(rows[:, ::every] if every > 1 else rows)


@numpy.errstate(all="ignore")
def _turned(wanted: Readback, last: Readback) -> float:
    """The share of ``wanted`` outside of the span of the last latent, of the worst row; nan where it is nothing."""
    one, other = wanted.values(), last.values()
    shared, own, others = (numpy.einsum("re,re->r", *pair) for pair in ((one, other), (one, one), (other, other)))
    return math.sqrt((1.0 - shared * shared / (own * others)).max(initial=0.0))


@numpy.errstate(all="ignore")
def _unexplained(wanted: Readback, known: Sequence[Readback]) -> float:
    """The share of ``wanted`` outside of the span of ``known``: a latent and outputs, each [rows, elements].

    By least squares of a few vectors of many elements, which are multiplied once: it is part of every denoiser call.
    """
    vectors = numpy.concatenate([each.values() for each in (wanted, *known)])
    products = vectors @ vectors.T
    length = numpy.sqrt(products.diagonal()) + 1e-30
    products /= length * length[:, None]
    rows = len(vectors) // (1 + len(known))
    with_goal, among, ridge = _numbers(rows, len(known))
    shared = products.take(with_goal)
    weights = numpy.linalg.solve(products.take(among) + ridge, shared)
    explained = ((shared + RIDGE * weights) * weights).sum((1, 2))
    # nothing can be said of what is not finite: nan is not more than 0
    return math.sqrt(max(0.0, (products.diagonal()[:rows] - explained).max()))


@lru_cache
def _numbers(rows: int, known: int) -> tuple[Numbers, Numbers, Values]:
    """Where the products of all vectors have those that a row needs: of the vectors that span what can be made of it
    with its goal, [rows, vectors, 1], and among each other, [rows, vectors, vectors]; and a ridge.

    Vectors are numbered one after the other: the goals, the latents, and the outputs of each call.
    """
    own = numpy.arange(rows)
    turns = sorted({rows * k // n for n in (2, 3) if rows % n == 0 for k in range(1, n)} - {0})  # guidance rows
    span = [rows + own] + [(2 + call) * rows + (own - turn) % rows for call in range(known - 1) for turn in (0, *turns)]
    spanning, count = numpy.array(span).T[:, :, None], rows * (1 + known)
    among = spanning * count + spanning.swapaxes(1, 2)
    return spanning * count + own[:, None, None], among, RIDGE * numpy.eye(len(span))
