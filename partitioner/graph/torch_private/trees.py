"""Arguments and outputs as trees of lists, tuples and dicts."""

from __future__ import annotations

from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only, tree_unflatten

__all__ = ["TreeSpec", "tree_flatten", "tree_leaves", "tree_map_only", "tree_unflatten"]
