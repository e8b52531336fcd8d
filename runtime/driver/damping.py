"""Damping: how much of a change that is foreseen is to be taken, as past predictions would have had it.

What is foreseen is ``fixed + γ·change``. Of what is known now, earlier calls would have foreseen just such a fixed part
and change; γ is the one, from 0 to 1, that would have told it best.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch

NOTHING = 1e-30  # beside any sum of squares


def told_by(missed: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """What a prediction tells of γ, (rows, 2, 1): change·missed, and change².

    Args:
        missed: (rows, 1, elements), without the change.
        change: that was predicted.
    """
    return torch.bmm(torch.cat([missed, change], 1), change.mT)


def damping_of(told: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """γ, (rows, 1, 1), by least squares; 1 where nothing is known.

    Args:
        told: by predictions that can be looked at, see told_by.
        like: (rows, 1, elements).
    """
    if not told:
        return like.new_ones((len(like), 1, 1))
    shared, norm = (reduce(torch.add, told) + NOTHING).chunk(2, 1)
    return (shared / norm).clamp(0.0, 1.0)
