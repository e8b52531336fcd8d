"""DeviceStream: where a rank's work is queued; all that differs between devices is behind this interface.

On a CPU work is done when its call returns, and there is nothing to order: DeviceStream itself. On a GPU it is queued
on CUDA streams: runtime.devices.cuda_stream.CudaDeviceStream.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

T = TypeVar("T")

Event = torch.cuda.Event  # a point in a CUDA stream: all that was queued before it is done when the event is


class DeviceStream:
    """The device stream of a rank on a CPU, and the interface of those on other devices.

    Args:
        rank: whose it is.
        device: where the rank computes.
    """

    def __init__(self, rank: int, device: torch.device) -> None:
        self.rank = rank
        self.device = device

    def entered(self) -> AbstractContextManager[object]:
        """A context in which the calling thread's work is queued as this rank's."""
        return nullcontext()

    def call(self, work: Callable[[], T]) -> T:
        """Do ``work`` as this rank's, for a caller that has queued work of its own on the device; returns its value.

        It comes after what the caller queued before, and what the caller queues next comes after it.
        """
        return work()

    def now(self) -> Event | None:
        """The event after all of this rank's work so far; None: that is done. Called by the rank's own thread."""
        return None

    def fetch(
        self, tensor: torch.Tensor, made: Event | None, sender: DeviceStream
    ) -> tuple[torch.Tensor, Event | None]:
        """Bring a sender's tensor to this device. Called by the sender's thread, which does not wait for it.

        Args:
            tensor: on the sender's device.
            made: the event from which on the tensor holds its values; None: it does already.
            sender: the device stream that computes it.

        Returns:
            The tensor on this device, and the event from which on it holds its values; None: it does already.
        """
        return tensor.to(self.device), None

    def accept(self, tensor: torch.Tensor, there: Event) -> None:
        """Let this rank's work from here on read a fetched tensor. Called by the rank's own thread."""

    def end(self, timeout_s: float) -> bool:
        """Wait until all of this rank's work is done, and let go of the streams; False where it is not in time.

        Args:
            timeout_s: how long to wait at most.

        Raises:
            RuntimeError: the device has failed.
        """
        return True
