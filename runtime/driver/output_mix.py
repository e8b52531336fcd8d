"""OutputMix: how strongly the outputs of a call are mixed into the one that the sampler gets, as guidance does.

Guidance runs a denoiser on the same latent several times (rows of a batch, or calls of their own, whose outputs are put
beside them: without the prompt, with it) and takes u = Σ a_r·u_r with Σ a_r = 1; at a guidance scale w the weights are
1 - w and w. Where the rows answer to a change of the latent unequally, u answers up to Σ max(a_r, 0) times as strongly.
The weights are not asked for: they are those, by least squares, that make of the rows' outputs the slope that the
sampler was seen to move by. They are fitted to the last call, as a scale may change, and to all calls, as rows that are
nearly alike tell little; the larger sum counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

UNSEEN = 5.0  # taken where something is mixed in that is not among the rows
SEEN = 0.05  # share of the slope that the rows may leave unexplained
RIDGE = 1e-4  # of the largest squared difference


@dataclass
class SampleRows:
    """The rows of those samples that have equally many in the batch; a sample's are on one latent.

    Attributes:
        rows: (samples, rows of one).
        products: of the differences of a sample's outputs from its first one's, with each other and, last, with what
            is to be made of them, mean over calls; None before the first. calls: how many.
    """

    rows: torch.Tensor
    products: torch.Tensor | None = None
    calls: int = 0

    def show(self, made: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """(2, samples): Σ max(a_r, 0), and the square of what no weights explain. Both given are (rows, elements)."""
        first, wanted = made[self.rows], slope[self.rows[:, :1]]
        if self.rows.shape[1] == 1:
            left = (wanted - first).square().sum((1, 2))
            return torch.stack([torch.ones_like(left), left])
        first, others = first[:, :1], first[:, 1:]
        apart, off = others - first, wanted - first
        products = torch.bmm(apart, torch.cat([apart, off], 1).mT)
        self.calls += 1
        self.products = products if self.products is None else torch.lerp(self.products, products, 1 / self.calls)
        both = torch.stack([products, self.products])  # (2, samples, others, others + 1)
        gram = both[..., :-1]
        ridge = RIDGE * gram[1].diagonal(dim1=1, dim2=2).amax(1, keepdim=True) + 1e-30
        gram.diagonal(dim1=2, dim2=3).add_(ridge)
        weights, _ = torch.linalg.solve_ex(gram, both[..., -1:])
        gain = weights.clamp_min(0).sum((2, 3)) + (1 - weights.sum((2, 3))).clamp_min(0)
        left = torch.baddbmm(off, weights[0].mT, apart, alpha=-1).square().sum((1, 2))
        return torch.stack([gain.amax(0), left])


@dataclass
class OutputMix:
    """Of the calls of one trajectory.

    Attributes:
        gain: by row, Σ max(a_r, 0) of its sample, at least 1; None until a call has been seen.
        rise: by row, by how much that has risen with the last call.
    """

    gain: torch.Tensor | None = None
    rise: torch.Tensor | None = None
    _samples: tuple[list[SampleRows], torch.Tensor] | None = None  # and by row, where its sample is in those
    _left: torch.Tensor | None = None  # by row, squares of what a row of its own does not explain, and of the slope

    def show(self, made: torch.Tensor | None, slope: torch.Tensor) -> None:
        """Take what a call's outputs mean, and what the sampler made of them; in call order.

        Args:
            made: the slopes that the outputs mean, (rows, elements) in float32; None where that is not known.
            slope: that the sampler was seen to move by, likewise; rows of one latent have the same.
        """
        if made is None or made.shape != slope.shape:
            self.gain = torch.full((len(slope),), UNSEEN, dtype=torch.float32, device=slope.device)
            return
        if self._samples is None:
            found = _samples(slope)
            if not found:
                return  # nothing has moved yet
            self._samples = found, _places(found)
        samples, places = self._samples
        gain, left = torch.cat([some.show(made, slope) for some in samples], 1)[:, places].unbind()
        squares = torch.stack([left, slope.square().sum(1)])
        self._left = squares if self._left is None else self._left + squares
        left, whole = self._left.unbind()
        before, self.gain = self.gain, torch.where(left > SEEN**2 * whole, gain.clamp_min(UNSEEN), gain)
        self.rise = torch.zeros_like(gain) if before is None else (self.gain - before).clamp_min(0.0)


def _samples(slope: torch.Tensor) -> list[SampleRows]:
    """Rows that have the same slope, by how many there are; none where no row has moved."""
    marks: dict[tuple[float, ...], list[int]] = {}
    for row, mark in enumerate(torch.stack([slope.sum(1), slope.abs().sum(1)], 1).tolist()):
        marks.setdefault(tuple(mark), []).append(row)
    if set(marks) == {(0.0, 0.0)}:
        return []
    by_length: dict[int, list[list[int]]] = {}
    for rows in marks.values():
        by_length.setdefault(len(rows), []).append(rows)
    return [SampleRows(torch.tensor(rows, device=slope.device)) for rows in by_length.values()]


def _places(samples: list[SampleRows]) -> torch.Tensor:
    """By row, which of all samples it is of."""
    rows = [row for some in samples for row in some.rows.tolist()]
    place = {row: number for number, own in enumerate(rows) for row in own}
    return torch.tensor([place[row] for row in range(len(place))], device=samples[0].rows.device)
