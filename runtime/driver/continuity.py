"""Moves: whether a latent can be what the sampler made of a trajectory's last latents and outputs.

Whatever a sampler does, its step is mostly linear: the next latent lies near the span of the last latent and the last
outputs, each guidance half by itself. What lies outside of the span is noise, or another trajectory's. Least squares
tell its share: measured over diffusers' samplers it is 0 to 0.3 for those without noise, up to 0.75 for those with (and
nearly 1 in the first steps of consistency samplers), and of another trajectory's first latent 0.85 to 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

ELEMENTS = 1024  # of each row are looked at, evenly spread
OUTPUTS = 2  # how many of the last outputs a step may combine
FOREIGN = 0.8  # more than this share unexplained is another trajectory's, unless this one has had such moves


class Moves:
    """The last latent and outputs of one trajectory, thinned out, and how well each latent was explained by them.

    Attributes:
        worst: the largest unexplained share so far; None before the second latent.
    """

    def __init__(self) -> None:
        self.worst: float | None = None
        self._latent: torch.Tensor | None = None  # the last one, thinned out
        self._outputs: deque[torch.Tensor] = deque(maxlen=OUTPUTS)
        self._part: Sequence[int] = ()  # the shape of what latent and output share

    def unexplained(self, latent: torch.Tensor) -> float:
        """The share of a latent, from 0 to 1, that no step can have made of what is known; of the worst row.

        Args:
            latent: as the pipeline passes it, rows first, of the shape of the last one.

        >>> moves, latent, output = Moves(), torch.randn(2, 64), torch.randn(2, 64)
        >>> moves.add(latent, output)
        >>> round(moves.unexplained(0.9 * latent - 0.1 * output), 3), moves.unexplained(torch.randn(2, 64)) > 0.8
        (0.0, True)
        """
        if self._latent is None:
            return 0.0
        rows = self._latent.shape[0]
        turns = sorted({0} | {rows * k // n for n in (2, 3) if rows % n == 0 for k in range(1, n)})  # guidance rows
        known = [self._latent, *(output.roll(turn, 0) for output in self._outputs for turn in turns)]
        return _unexplained(_thinned(latent, self._part), torch.stack(known, dim=-1))

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
            self._part = [min(pair) for pair in zip(latent.shape, output.shape, strict=True)]
            self._outputs.append(_thinned(output, self._part))
        else:
            self._part = latent.shape
        self._latent = _thinned(latent, self._part)


def _thinned(tensor: torch.Tensor, part: Sequence[int]) -> torch.Tensor:
    """Of the first entries of every dimension, some of each row: [rows, elements]."""
    rows = tensor[tuple(slice(0, size) for size in part)].reshape(part[0], -1)
    return rows[:, :: -(-rows.shape[1] // ELEMENTS)].detach().to("cpu", torch.float64, copy=True)


def _unexplained(wanted: torch.Tensor, known: torch.Tensor) -> float:
    """The share of ``wanted`` [rows, elements] outside of the span of ``known`` [rows, elements, vectors]."""
    if not (wanted.isfinite().all() and known.isfinite().all()):
        return 0.0  # nothing can be said
    known = known / known.norm(dim=1, keepdim=True).clamp_min(1e-30)
    goal = wanted.unsqueeze(-1)
    basis = torch.linalg.qr(known).Q
    missing = goal - basis @ (basis.mT @ goal)
    return float((missing.norm(dim=1) / goal.norm(dim=1).clamp_min(1e-30)).max())
