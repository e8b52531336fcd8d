"""Spent: how much of the error that a generation's pictures may have its trajectories have passed on so far.

A generation may have several trajectories, one after the other: one that a changed prompt, denoiser, size or latent has
begun anew, or that of a second denoiser. Their errors add up, so that each has what those before it have left.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass


@dataclass
class Spent:
    """Of one latent input.

    Attributes:
        most: of the harm in the last latent that guards have let pass, the most that any row has.
    """

    most: float = 0.0


def spent_by_latent() -> defaultdict[str, Spent]:
    """Of each latent input of a denoiser."""
    return defaultdict(Spent)
