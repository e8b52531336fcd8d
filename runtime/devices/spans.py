"""span: gives what a rank computes a name in the traces of torch.profiler and Nsight."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from partitioner.graph.torch_private.under_way import is_profiling

_UNNAMED = nullcontext()


def span(name: str, device: torch.device) -> AbstractContextManager[object]:
    """Name what runs inside, where somebody may see it; else this costs less than a microsecond.

    Args:
        name: as traces show it.
        device: that it is computed on; a GPU's has an NVTX range, which Nsight shows.
    """
    if is_profiling():
        return torch.profiler.record_function(name)
    if device.type == "cuda" and _has_nvtx():
        return torch.cuda.nvtx.range(name)
    return _UNNAMED


@cache
def _has_nvtx() -> bool:
    """Whether this build of torch can make NVTX ranges."""
    try:
        with torch.cuda.nvtx.range("diffusion-partitioner"):
            return True
    except RuntimeError:
        return False
