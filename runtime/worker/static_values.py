"""static_values: what stays the same in every evaluation of a graph, its parameters and constants, by value name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from partitioner.graph.ir import Parameter
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
    values = {p.name: tensors[p.path].detach().requires_grad_(p.requires_grad) for p in parameters}
    with torch.no_grad():
        return values if constants is None else {**values, **constants(values)}
