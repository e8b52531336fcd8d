"""DeviceStream: where a rank's work is queued, so that all that differs between devices stands behind one face.

On a CPU work is done when its call returns, and there is nothing to order. On a GPU it is queued on streams: see
runtime.devices.cuda_stream.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

T = TypeVar("T")

Event = torch.cuda.Event  # when what was queued so far is done


class DeviceStream:
    """The device stream of a rank on a CPU."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self.rank = rank
        self.device = device

    def entered(self) -> AbstractContextManager[object]:
        """Inside it the calling thread's work is this rank's."""
        return nullcontext()

    def call(self, work: Callable[[], T]) -> T:
        """The value of ``work``, done as this rank's, for a caller that has queued work of its own.

        It comes after what the caller queued before, and what the caller queues next comes after it.
        """
        return work()

    def now(self) -> Event | None:
        """When this rank's work up to here is done; None: it is. Called by the rank's own thread."""
        return None

    def fetch(
        self, tensor: torch.Tensor, made: Event | None, sender: DeviceStream
    ) -> tuple[torch.Tensor, Event | None]:
        """Bring a sender's tensor, there from ``made`` on, to this device: the tensor here, and when it is there.

        Called by the sender's thread, which does not wait for it.
        """
        return tensor.to(self.device), None

    def accept(self, tensor: torch.Tensor, there: Event) -> None:
        """Let this rank's work from here on read a fetched tensor. Called by the rank's own thread."""

    def synchronize(self) -> None:
        """Wait until all of this rank's work is done."""
