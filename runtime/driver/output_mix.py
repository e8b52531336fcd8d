"""OutputMix: how strongly the outputs of a call are mixed into the one that the sampler gets, as guidance does.

Guidance runs a denoiser on the same latent several times (rows of a batch, or calls of their own, whose outputs are put
beside them: without the prompt, with it) and takes u = Σ a_r·u_r with Σ a_r = 1; at a guidance scale w the weights are
1 - w and w. Where the rows answer to a change of the latent unequally, u answers up to Σ max(a_r, 0) times as strongly.
The weights are not asked for: they are those, by least squares, that make of the rows' outputs the slope that the
sampler was seen to move by. They are fitted to the last call, as a scale may change, and to all calls, as rows that are
nearly alike tell little; the larger sum counts. Products of outputs are asked of the device (``show``), and the weights
are the host's to find once it has read them (``take``): that is some fifty small operators less for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from runtime.driver.damping import NOTHING
from runtime.driver.readback import HostValues

UNSEEN = 5.0  # taken where something is mixed in that is not among the rows
SEEN = 0.05  # share of the slope that the rows may leave unexplained
RIDGE = 1e-4  # of the largest squared difference


class SampleRows:
    """The rows of those samples that have equally many in the batch; a sample's are on one latent."""

    def __init__(self, rows: list[list[int]], count: int, device: torch.device) -> None:
        """rows: of each sample. count: of all."""
        self.samples = len(rows)
        slopes = [count + own[0] for own in rows]  # those of all rows come behind all outputs
        self._vectors = torch.tensor(
            [[*own, slope] for own, slope in zip(rows, slopes, strict=True)], device=device
        ).flatten()
        self._mean: HostValues | None = None  # of the products
        self._calls = 0

    def show(self, made_and_slope: torch.Tensor) -> torch.Tensor:
        """Products of the differences of a sample's outputs from its first one's, and of the slope's behind them, with
        each other: (samples, rows of one, rows of one). Given are the outputs and behind them the slopes, by row.
        """
        vectors = made_and_slope.index_select(0, self._vectors).view(self.samples, -1, made_and_slope.shape[2])
        apart = vectors[:, 1:] - vectors[:, :1]
        return torch.bmm(apart, apart.mT)

    def take(self, products: HostValues) -> tuple[HostValues, HostValues]:
        """Of each sample Σ max(a_r, 0), and the square of what no weights explain."""
        self._calls += 1
        self._mean = products if self._mean is None else self._mean + (products - self._mean) / self._calls
        both = np.stack([products, self._mean])  # (2, samples, others + 1, others + 1)
        gram, shared = both[..., :-1, :-1], both[..., :-1, -1:]
        largest = gram[1].diagonal(axis1=1, axis2=2).max(1, initial=0.0)
        ridge = (RIDGE * largest + NOTHING)[:, None, None] * np.eye(gram.shape[-1])
        weights = np.linalg.solve(gram + ridge, shared)
        gain = np.maximum(weights, 0.0).sum((2, 3)) + np.maximum(1.0 - weights.sum((2, 3)), 0.0)
        # |slope - Σ a_r·u_r|²
        last, off = weights[0], products[:, -1, -1]
        left = off + ((gram[0] @ last - 2.0 * shared[0]) * last).sum((1, 2))
        return gain.max(0), left


@dataclass
class OutputMix:
    """Of the calls of one trajectory.

    Attributes:
        gain: by row, Σ max(a_r, 0) of its sample, at least 1; None until a call has been seen.
        rise: by row, by how much that has risen with the last call.
    """

    gain: HostValues | None = None
    rise: HostValues | None = None
    _samples: tuple[list[SampleRows], list[int]] | None = None  # and by row, where its sample is in those
    _left: HostValues | None = None  # by row, squares of what a row of its own does not explain, and of the slope

    def show(self, made: torch.Tensor | None, slope: torch.Tensor) -> list[torch.Tensor]:
        """Of a call's outputs, and what the sampler made of them, what ``take`` is to be given in call order; [] where
        that says nothing.

        Args:
            made: the slopes that the outputs mean, (rows, 1, elements) in float32; None where that is not known.
            slope: that the sampler was seen to move by, likewise; rows of one latent have the same.
        """
        if made is None or made.shape != slope.shape:
            self.gain = np.full(len(slope), UNSEEN)
            return []
        if self._samples is None:
            rows = _samples(slope)
            if not rows:
                return []  # nothing has moved yet
            self._samples = [SampleRows(own, len(slope), slope.device) for own in rows], _places(rows)
        both = torch.cat([made, slope])
        return [torch.linalg.vector_norm(slope, dim=2), *(some.show(both) for some in self._samples[0])]

    @np.errstate(all="ignore")  # what is not finite is the guard's to refuse
    def take(self, length: HostValues, *products: HostValues) -> None:
        """Take the values of what ``show`` gave."""
        assert self._samples is not None, "nothing was shown"
        samples, places = self._samples
        taken = [some.take(own) for some, own in zip(samples, products, strict=True)]
        gain, left = (np.concatenate(each)[places] for each in zip(*taken, strict=True))
        squares = np.stack([left, np.square(length[:, 0])])
        self._left = squares if self._left is None else self._left + squares
        left, whole = self._left
        before, self.gain = self.gain, np.where(left > SEEN**2 * whole, np.maximum(gain, UNSEEN), gain)
        self.rise = np.zeros_like(gain) if before is None else np.maximum(self.gain - before, 0.0)


def _samples(slope: torch.Tensor) -> list[list[list[int]]]:
    """Rows that have the same slope, by how many there are; none where no row has moved."""
    marks: dict[tuple[float, ...], list[int]] = {}
    for row, mark in enumerate(torch.cat([slope.sum(2), slope.abs().sum(2)], 1).tolist()):
        marks.setdefault(tuple(mark), []).append(row)
    if set(marks) == {(0.0, 0.0)}:
        return []
    by_length: dict[int, list[list[int]]] = {}
    for rows in marks.values():
        by_length.setdefault(len(rows), []).append(rows)
    return list(by_length.values())


def _places(samples: list[list[list[int]]]) -> list[int]:
    """By row, which of all samples it is of."""
    every = [rows for some in samples for rows in some]
    place = {row: number for number, rows in enumerate(every) for row in rows}
    return [place[row] for row in range(len(place))]
