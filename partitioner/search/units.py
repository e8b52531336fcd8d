"""Units: nodes that stay on one component, as the array ``Problem.together``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from partitioner.search.arrays import Ints


def joined_units(count: int, groups: Iterable[Sequence[int]]) -> Ints:
    """Join groups of nodes that must stay together, transitively.

    Args:
        count: How many nodes there are; they are numbered from 0.
        groups: Numbers of nodes that stay together; groups that have a node in common become one unit.

    Returns:
        (count,) of each node the smallest number in its unit, -1 where it is in no unit of several nodes.

    >>> joined_units(6, [[1, 2], [4, 2], [3]]).tolist()
    [-1, 1, 1, -1, 1, -1]
    """
    together = np.full(count, -1, dtype=np.int64)
    groups = [group for group in groups if len(group) > 1]
    if groups:
        from networkx.utils import UnionFind  # takes 0.3 s to import, which commands that plan nothing should not pay

        joined = UnionFind()
        for group in groups:
            joined.union(*group)
        for members in joined.to_sets():
            if len(members) > 1:
                together[list(members)] = min(members)
    return together
