"""Readback: a few values of a device that the host will look at later, so that it need not wait for them now.

What a GPU computes is there some time after the call that asks for it. Waiting for it takes the host's lead: until then
it cannot queue what comes next. So what a decision needs of a call's values is fetched while the call runs, and the
decision taken at the next one.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch


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
        if tensor.is_cuda:
            wide = tensor.detach().to(torch.float64, copy=True)
            host = torch.empty(wide.shape, dtype=wide.dtype, pin_memory=True).copy_(wide, non_blocking=True)
            self._there = torch.cuda.current_stream(wide.device).record_event()
            self._host = host.numpy()
        elif tensor.dtype is torch.float32:
            self._host = tensor.detach().numpy().astype(numpy.float64)  # in a third of the time that torch takes
        else:
            self._host = tensor.detach().to(torch.float64, copy=True).numpy()

    def values(self) -> numpy.ndarray[Any, numpy.dtype[numpy.float64]]:
        """The values, as float64; waits for what was queued before they were asked for."""
        if self._there is not None:
            self._there.synchronize()
            self._there = None
        return self._host
