"""Spent: how much of the error that a generation's pictures may have its trajectories have passed on so far.

A generation may have several trajectories, one after the other: one that a changed prompt, denoiser, size or latent has
begun anew, or that of a second denoiser. Their errors add up, so that each has what those before it have left.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

ROUNDING = 1e-6  # shares may add up to more than the bound by so much


@dataclass
class Spent:
    """Of one latent input.

    Attributes:
        most: of the harm in the last latent that guards have let pass, the most that any row has.
        is_too_much: whether that has come to be more than the bound, as guidance has risen since.

    >>> spent = Spent()
    >>> spent.add(0.1, 0.2)
    >>> spent
    Spent(most=0.1, is_too_much=False)
    """

    most: float = 0.0
    is_too_much: bool = False

    def add(self, most: float, bound: float) -> None:
        """Take note of what the trajectories so far have passed on. bound: of the generation."""
        self.most = max(self.most, most)
        self.is_too_much |= most > (1 + ROUNDING) * bound

    def take_back(self, before: Spent) -> None:
        """Be what this was before: what was to be passed on since is in no picture."""
        self.most, self.is_too_much = before.most, before.is_too_much


def spent_by_latent() -> defaultdict[str, Spent]:
    """Of each latent input of a denoiser."""
    return defaultdict(Spent)
