"""CopyStream: a stream of one channel's copies in one direction; Arriving and FarSlot: a reader's copies to its GPU.

A reader that computes on another GPU than its slots are on copies each message, on a stream of its own, and gives the
slot back some time after the copy is done: no process can tell another one's streams to wait.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

import torch

from runtime.devices.cuda_stream import COPIES_FIRST
from runtime.devices.stream import Event
from runtime.devices.stream_pool import STREAMS
from runtime.transport import cuda_driver
from runtime.transport.layout import Layout, from_bytes
from runtime.transport.memory import Slot

END_S = 2.0  # how long copies that are under way may take at the end
LOOK_S = 0.001  # between two looks at whether they are done

_log = logging.getLogger("runtime")


class CopyStream:
    """A stream of a GPU for a channel's copies in one direction.

    Args:
        device: the GPU, with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = STREAMS.take(device, COPIES_FIRST)
        self._ended = False

    def end(self, timeout_s: float) -> bool:
        """Wait until all copies are done and let go of the stream; False where they are not in time.

        Args:
            timeout_s: how long to wait at most.
        """
        until = time.monotonic() + timeout_s
        try:
            while not (self._ended or self.stream.query()):
                if time.monotonic() > until:
                    return False
                time.sleep(LOOK_S)
        except RuntimeError as error:  # a GPU that failed has already raised in its rank
            _log.debug("copies of %s have not ended: %s", self.stream.device, error)
            return False
        if not self._ended:
            self._ended = True
            STREAMS.give_back(self.stream.device, COPIES_FIRST, self.stream)
        return True


class Arriving(CopyStream):
    """The stream on which a reader copies, and the copies that are not known to be done."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._under_way: deque[tuple[Event, Callable[[], None]]] = deque()

    def note(self, returned: Callable[[], None]) -> Event:
        """The event after the copy queued last; ``returned`` is called some time after it."""
        while self._under_way and self._under_way[0][0].query():  # type: ignore[no-untyped-call]
            self._under_way.popleft()[1]()
        there: Event = self.stream.record_event()
        self._under_way.append((there, returned))
        return there


class FarSlot(Slot):
    """The reader's side of a slot that is not on its GPU.

    Args:
        region: where it lies, which it keeps.
        address: from where the reader's GPU copies; size_bytes: how long it is.
        is_written: whether it holds the message.
        arriving: the stream to copy on.
    """

    def __init__(
        self, region: object, address: int, size_bytes: int, is_written: Callable[[], bool], arriving: Arriving
    ) -> None:
        self.size_bytes = size_bytes
        self._region = region
        self._address = address
        self._is_written = is_written
        self._arriving = arriving

    def is_written(self) -> bool:
        return self._is_written()

    def write(self, tensor: torch.Tensor, layout: Layout) -> None:
        raise NotImplementedError("only its sender writes to it")

    def lend(self, layout: Layout, returned: Callable[[], None]) -> tuple[torch.Tensor, Event]:
        stream = self._arriving.stream
        with torch.cuda.stream(stream):
            here = torch.empty(layout.size_bytes, dtype=torch.uint8, device=stream.device)
        cuda_driver.copy(stream, here.data_ptr(), self._address, layout.size_bytes)
        return from_bytes(here, layout), self._arriving.note(returned)
