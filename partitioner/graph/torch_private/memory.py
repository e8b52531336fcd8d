"""Memory of tensors: who shares it, copies of many at once, CUDA-graph pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def storage_is_shared(tensor: torch.Tensor) -> bool:
    """Whether a tensor, a numpy array or a process beside this tensor has a part of the memory that it lies in."""
    storage = tensor.untyped_storage()
    own = 2 if tensor._base is None else 3  # the tensor, what it is a view of, and ``storage``
    counted: int = torch._C._storage_Use_Count(storage._cdata)
    by_processes = tensor.device.type == "cpu" and tensor.is_shared()  # type: ignore[no-untyped-call]
    return counted > own or by_processes  # that of a GPU always can be


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each source to its target of the same shape and dtype; on a GPU in few kernels, where none has gaps."""
    if len(targets) == 1:
        targets[0].copy_(sources[0])
    elif targets:
        torch._foreach_copy_(list(targets), list(sources))


def abandon_capture(device: int, pool: Any) -> None:
    """Have torch's allocator end a CUDA-graph capture whose own end failed.

    Args:
        device: Index of the GPU.
        pool: The memory pool of the graph.

    Raises:
        RuntimeError: No capture into that pool is under way.
        AttributeError: This torch has no such calls.
    """
    torch._C._cuda_endAllocateToPool(device, pool)
    torch._C._cuda_releasePool(device, pool)
