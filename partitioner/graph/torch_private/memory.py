"""Memory of tensors: who shares it, copies of many at once, CUDA-graph pools."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch


def storage_is_shared(tensor: torch.Tensor) -> bool:
    """Whether a tensor, a numpy array, a process or who holds its storage has a part of a tensor's memory, too."""
    storage = tensor.untyped_storage()
    if sys.getrefcount(storage) > _held_by_nobody():
        return True
    own = 2 if tensor._base is None else 3  # the tensor, what it is a view of, and ``storage``
    counted: int = torch._C._storage_Use_Count(storage._cdata)
    by_processes = tensor.device.type == "cpu" and tensor.is_shared()  # type: ignore[no-untyped-call]
    return counted > own or by_processes  # that of a GPU always can be


@lru_cache(maxsize=1)
def _held_by_nobody() -> int:
    """The count of references to a storage that nobody but the function that asks for it has."""
    tensor = torch.empty(1, device="cpu")
    storage = tensor.untyped_storage()
    return sys.getrefcount(storage)


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
