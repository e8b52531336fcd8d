"""Which rank runs which component of which branch.

Component k of branch b runs on rank b*N + (N-1-k), so that rank 0, the driver, has the last component of branch 0,
which makes the output.
"""

from __future__ import annotations


def rank_of(branch: int, component: int, components: int) -> int:
    """The rank that runs a component of a branch; rank 0 has the last component of branch 0."""
    return branch * components + components - 1 - component


def seat_of(rank: int, components: int) -> tuple[int, int]:
    """(branch, component) of a rank: the inverse of rank_of."""
    return rank // components, components - 1 - rank % components
