"""Micro-batches: an exact call's rows in parts, so that one component computes a part while another has the next.

The rows of a denoiser's batch are samples that it computes apart from each other, so that this is exact, up to the
last bits: matrix products of other shapes may sum in another order. Every part is an evaluation of its own, of the
graph traced at its shape, in a cache context of its own. What a lagged evaluation will read of an exact call is
joined where it arrives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from partitioner.graph.ir import TensorMeta
from runtime.worker.specs import Wire


def joined_dim(whole: Sequence[int], part: Sequence[int], parts: int) -> int | None:
    """The dimension that is ``parts`` times as long in ``whole``, all others being equal; None if there is no such."""
    if len(whole) != len(part):
        return None
    other = [dim for dim, (a, b) in enumerate(zip(whole, part, strict=True)) if a != b]
    return other[0] if len(other) == 1 and whole[other[0]] == parts * part[other[0]] else None


def can_join(whole: Sequence[Wire], part: Sequence[Wire], parts: int) -> bool:
    """Whether what travels in the graph of a part are parts of what travels in the graph of the whole batch."""
    return [wire.value for wire in whole] == [wire.value for wire in part] and all(
        joined_dim(one.meta.shape, other.meta.shape, parts) is not None
        for one, other in zip(whole, part, strict=True)
        if one.source is not None
    )


def join(tensors: Sequence[torch.Tensor], whole: TensorMeta) -> torch.Tensor:
    """The parts of a tensor, in order, as one of the shape of ``whole``; they can be joined."""
    dim = joined_dim(whole.shape, tensors[0].shape, len(tensors))
    assert dim is not None, "only what can be joined is run in parts"
    return torch.cat(list(tensors), dim)
