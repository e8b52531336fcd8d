"""Readback: a few values of a device that the host will look at later, so that it need not wait for them now.

What a GPU computes is there some time after the call that asks for it. Waiting for it takes the host's lead: until then
it cannot queue what comes next. So what a decision needs of a call's values is fetched while the call runs, and the
decision taken at the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch

HostValues = numpy.ndarray[Any, numpy.dtype[numpy.float64]]


def is_late(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values are there only some time after the call that makes them, as on a GPU."""
    return tensor.is_cuda


class Readback:
    """Values on their way to the host.

    Args:
        tensor: small; it may be written to or freed right after.

    >>> Readback(torch.tensor([1.0, 2.0], dtype=torch.bfloat16)).values().tolist()
    [1.0, 2.0]
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._there: torch.cuda.Event | None = None
        if tensor.requires_grad:
            tensor = tensor.detach()
        if tensor.is_cuda:
            wide = tensor.to(torch.float64, copy=True)
            host = torch.empty(wide.shape, dtype=wide.dtype, pin_memory=True).copy_(wide, non_blocking=True)
            self._there = torch.cuda.current_stream(wide.device).record_event()
            self._host = host.numpy()
        elif tensor.dtype is torch.bfloat16:  # which numpy does not have
            self._host = tensor.to(torch.float64).numpy()
        else:
            self._host = tensor.numpy().astype(numpy.float64)  # in a third of the time that torch takes

    def values(self) -> HostValues:
        """The values, as float64; waits for what was queued before they were asked for."""
        if self._there is not None:
            self._there.synchronize()
            self._there = None
        return self._host


def read(tensors: Sequence[torch.Tensor]) -> list[HostValues]:
    """The values of several small tensors, as float64; waits for all of them at once.

    >>> [values.tolist() for values in read([torch.tensor([[1.0]]), torch.tensor([2, 3])])]
    [[[1.0]], [2.0, 3.0]]
    """
    if not any(map(is_late, tensors)):
        return [Readback(tensor).values() for tensor in tensors]
    together = Readback(torch.cat([tensor.flatten() for tensor in tensors])).values()
    ends = numpy.cumsum([tensor.numel() for tensor in tensors])[:-1]
    parts = numpy.split(together, ends)
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
