"""OutputMix: how strongly the outputs of a call are mixed into the one that the sampler gets, as guidance does.

Guidance runs a denoiser on the same latent several times (rows of a batch: without the prompt, with it) and takes
u = Σ a_r·u_r with Σ a_r = 1; at a guidance scale w the weights are 1 - w and w. Where the rows answer to a change of
the latent unequally, u answers up to Σ max(a_r, 0) times as strongly. The weights are not asked for: they are those, by
least squares over all calls, that make of the rows' outputs the slope that the sampler was seen to move by.
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
            what is to be made of them, summed over calls.
    """

    rows: torch.Tensor
    gram: torch.Tensor
    shared: torch.Tensor

    def weights(self, made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """a, by row. made: (rows, elements), what a call's rows have made; wanted: (elements,), what was made of it."""
        apart = made[1:] - made[0]
        self.gram = self.gram + apart @ apart.T
        self.shared = self.shared + apart @ (wanted - made[0])
        ridge = RIDGE * self.gram.diagonal().amax() + 1e-30
        inverse, _ = torch.linalg.inv_ex(self.gram + ridge * torch.eye(len(self.gram), device=made.device))
        others = inverse @ self.shared
        return torch.cat([1.0 - others.sum(0, keepdim=True), others])


@dataclass
class OutputMix:
    """Of the calls of one trajectory.

    Attributes:
        gain: by row, Σ max(a_r, 0) of its group, at least 1; None until a call has been seen.
    """

    gain: torch.Tensor | None = None
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
            self.gain = torch.full((rows,), UNSEEN, device=slope.device)
            return
        made, slope = made.flatten(1).float(), slope.flatten(1).float()
        if self._groups is None or self._left is None:
            self._groups, self._left = _groups(slope), torch.zeros(2, rows, device=slope.device)
        gain = torch.ones(rows, device=slope.device)
        left = (slope - made).square().sum(1)
        for group in self._groups:
            gain[group.rows] = group.weights(made[group.rows], slope[group.rows[0]]).clamp_min(0.0).sum()
            left[group.rows] = 0.0
        self._left = self._left + torch.stack([left, slope.square().sum(1)])
        unseen = self._left[0] > SEEN**2 * self._left[1]
        self.gain = torch.where(unseen, UNSEEN, gain)


def _groups(slope: torch.Tensor) -> list[RowGroup]:
    """Rows that have the same slope, where there are several."""
    marks: dict[tuple[float, ...], list[int]] = {}
    for row, mark in enumerate(torch.stack([slope.sum(1), slope.abs().sum(1)], 1).tolist()):
        marks.setdefault(tuple(mark), []).append(row)
    found, device = [], slope.device
    for rows in marks.values():
        if len(rows) > 1:
            others = len(rows) - 1
            empty = torch.zeros(others, others, device=device), torch.zeros(others, device=device)
            found.append(RowGroup(torch.tensor(rows, device=device), *empty))
    return found
