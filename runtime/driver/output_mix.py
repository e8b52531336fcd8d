"""OutputMix: how strongly the outputs of a call are mixed into the one that the sampler gets, as guidance does.

Guidance runs a denoiser on the same latent several times (rows of a batch: without the prompt, with it) and takes
u = Σ a_r·u_r with Σ a_r = 1; at a guidance scale w the weights are 1 - w and w. Where the rows answer to a change of
the latent unequally, u answers up to Σ max(a_r, 0) times as strongly. The weights are not asked for: they are those, by
least squares, that make of the rows' outputs the slope that the sampler was seen to move by. They are fitted to the
last call, as a scale may change, and to all calls, as rows that are nearly alike tell little; the larger sum counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

UNSEEN = 5.0  # taken where something is mixed in that is not among the rows: they are calls of their own
SEEN = 0.05  # share of the slope that the rows may leave unexplained
RIDGE = 1e-4  # of the largest squared difference


@dataclass
class RowGroup:
    """Rows of the batch on one latent.

    Attributes:
        rows: their numbers.
        gram, shared: of the differences of their outputs from the first one's, the products with each other and with
            what is to be made of them, summed over calls; calls: how many.
    """

    rows: torch.Tensor
    gram: torch.Tensor
    shared: torch.Tensor
    calls: int = 0

    def show(self, made: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(Σ max(a_r, 0), the square of what no weights explain).

        made: (rows, elements), what a call's rows have made; wanted: (elements,), what was made of it.
        """
        apart, off = made[1:] - made[0], wanted - made[0]
        gram, shared = apart @ apart.T, apart @ off
        self.gram, self.shared, self.calls = self.gram + gram, self.shared + shared, self.calls + 1
        ridge = RIDGE * self.gram.diagonal().amax() / self.calls + 1e-30
        last, all_calls = _solved(gram, shared, ridge), _solved(self.gram, self.shared, ridge * self.calls)
        gain = torch.maximum(
            *(others.clamp_min(0).sum() + (1 - others.sum()).clamp_min(0) for others in (last, all_calls))
        )
        return gain, (off - last @ apart).square().sum()


@dataclass
class OutputMix:
    """Of the calls of one trajectory.

    Attributes:
        gain: by row, Σ max(a_r, 0) of its group, at least 1; None until a call has been seen.
        rise: by row, by how much that has risen with the last call.
    """

    gain: torch.Tensor | None = None
    rise: torch.Tensor | None = None
    _groups: list[RowGroup] | None = None
    _left: torch.Tensor | None = None  # by row, squares of what a row of its own does not explain, and of the slope

    def show(self, made: torch.Tensor | None, slope: torch.Tensor) -> None:
        """Take what a call's outputs mean, and what the sampler made of them; in call order.

        Args:
            made: the slopes that the outputs mean, rows first; None where that is not known.
            slope: that the sampler was seen to move by; rows of one latent have the same.
        """
        rows = slope.shape[0]
        if made is None or made.shape != slope.shape:
            self.gain = torch.full((rows,), UNSEEN, dtype=torch.float32, device=slope.device)
            return
        made, slope = made.flatten(1).float(), slope.flatten(1).float()
        if self._groups is None or self._left is None:
            self._groups, self._left = _groups(slope), torch.zeros(2, rows, dtype=torch.float32, device=slope.device)
        if self._groups is None:
            return  # nothing has moved yet
        gain = torch.ones(rows, dtype=torch.float32, device=slope.device)
        left = (slope - made).square().sum(1)
        for group in self._groups:
            gain[group.rows], left[group.rows] = group.show(made[group.rows], slope[group.rows[0]])
        self._left = self._left + torch.stack([left, slope.square().sum(1)])
        unseen = self._left[0] > SEEN**2 * self._left[1]
        before, self.gain = self.gain, torch.where(unseen, gain.clamp_min(UNSEEN), gain)
        self.rise = torch.zeros_like(gain) if before is None else (self.gain - before).clamp_min(0.0)


def _solved(gram: torch.Tensor, shared: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    """The weights of all rows but the first."""
    inverse, _ = torch.linalg.inv_ex(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    found: torch.Tensor = inverse @ shared
    return found


def _groups(slope: torch.Tensor) -> list[RowGroup] | None:
    """Rows that have the same slope, where there are several; None where no row has moved."""
    marks: dict[tuple[float, ...], list[int]] = {}
    for row, mark in enumerate(torch.stack([slope.sum(1), slope.abs().sum(1)], 1).tolist()):
        marks.setdefault(tuple(mark), []).append(row)
    if set(marks) == {(0.0, 0.0)}:
        return None
    found, device = [], slope.device
    for rows in marks.values():
        if len(rows) > 1:
            others = len(rows) - 1
            empty = slope.new_zeros(others, others), slope.new_zeros(others)
            found.append(RowGroup(torch.tensor(rows, device=device), *empty))
    return found
