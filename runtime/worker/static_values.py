"""static_values: what stays the same in every evaluation of a graph, its parameters and constants, by value name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from partitioner.graph.nodes import Parameter
from runtime.worker.segment import Segment


def static_values(
    parameters: Sequence[Parameter], tensors: Mapping[str, torch.Tensor], constants: Segment | None
) -> dict[str, torch.Tensor]:
    """Parameters by the names of their values, and what is computed from nothing else.

    Each requires a gradient where the module's own does, although none is ever computed: torch.matmul folds the rows
    of a batch, or does not, by that.

    Args:
        parameters: what to take.
        tensors: by path in the denoiser's state; kept, not copied.
        constants: what computes the constants; None where there are none.
    """
    values = {p.name: _ordinary(tensors[p.path]).requires_grad_(p.requires_grad) for p in parameters}
    with torch.no_grad():
        return values if constants is None else {**values, **constants(values)}


def _ordinary(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor of its own, which is none of inference mode: those cannot require gradients."""
    if not tensor.is_inference():
        return tensor.detach()
    made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return made.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
