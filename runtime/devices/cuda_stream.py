"""CudaDeviceStream: the CUDA streams of a rank on a GPU. Ranks are threads of one process; no thread waits for a GPU.

A rank has one compute stream, the current stream of its thread. A message is a tensor and an event: the sender records
the event on its compute stream after the producer, and the reader's compute stream waits for it where the message is
taken. Between ranks of one GPU nothing is copied. Between two GPUs each ordered pair of ranks has a pair of copy
streams, one on either GPU (torch copies on the source's current stream, between barriers with the target's). A message
from rank 0 on GPU A to rank 1 on GPU B:

       compute of rank 0 (A)   copy out, 0 to 1 (A)   copy in, 0 to 1 (B)   compute of rank 1 (B)
    1  produce the tensor                                                   (other work)
    2  record ``made``                                                          :
    3  (other work)            wait for ``made``                                :
    4      :                   copy ===============>  copy                      :
    5      :                                          record ``there``          :
    6      :                                                                wait for ``there``
    7      :                                                                read the tensor

So a copy waits for its own producer only, delays neither the sender's compute nor other messages, and messages that
travel both ways cannot wait for each other.

Memory. torch's allocator hands a freed block out again at once to the stream that it was allocated on, so a block must
not be freed while another stream may still use it. Who uses what on another stream:
- the reader's compute stream uses a message: recorded on the block (record_stream) when it is taken, so that a later
  free waits for what that stream has queued by then, whichever rank drops the last reference, also where a predictor
  keeps the message for several steps. Until it is taken the mailbox holds it; one that is never taken is used by no
  stream but its own;
- the sender's copy stream reads the tensor that is sent: recorded on it when the copy is queued;
- a copied tensor is allocated on the receiving copy stream, which writes to it, and used by the reader's compute
  stream: as above;
- parameters that ranks share with the denoiser, and those sent in one process, are messages too, and live as long as
  the ranks. They need not be on the sender's device: those of a denoiser on the CPU are copied on the receiving copy
  stream, and those on another GPU were made, and are copied out, on the calling thread's current stream there;
- the caller's inputs: the driver clones what it sends on its own compute stream, which has waited for the caller's
  stream; the caller's stream then waits for the driver's, so that an input that is freed or written to after the call
  is so after it was read. Other ranks see the clones only;
- results are allocated on the driver's compute stream and used on the caller's: recorded on them;
- static buffers and the memory of CUDA graphs belong to one rank's compute stream, and nothing leaves but copies
  (runtime.devices.cuda_graphs).
When the ranks end, every device stream is waited for, so that streams, graphs and parameters go when nothing uses them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from runtime.devices.stream import DeviceStream, Event
from runtime.devices.stream_pool import STREAMS

T = TypeVar("T")

COPIES_FIRST = -1  # priority of copy streams; torch then takes them from another pool than compute streams
_LOOK_S = 0.001  # between two looks at whether a device is done


def _event(stream: torch.cuda.Stream) -> Event:
    event: Event = stream.record_event()
    return event


class CudaDeviceStream(DeviceStream):
    """The device stream of a rank on a GPU. The numbers in its comments are those of the table above.

    Args:
        rank: whose it is.
        device: the GPU, with its index.
        share: the stream of the rank's share of the GPU, on which it computes; None: one for the whole GPU.
    """

    def __init__(self, rank: int, device: torch.device, share: torch.cuda.Stream | None = None) -> None:
        super().__init__(rank, device)
        self._has_share = share is not None
        self.compute = share or STREAMS.take(device)
        self._ended = False
        self._from: dict[int, torch.cuda.Stream] = {}  # sender -> the copy stream here, used in the sender's thread
        self._to: dict[int, torch.cuda.Stream] = {}  # reader -> the copy stream here

    def entered(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.compute)

    def call(self, work: Callable[[], T]) -> T:
        caller = torch.cuda.current_stream(self.device)
        self.compute.wait_stream(caller)
        try:
            with torch.cuda.stream(self.compute):
                value = work()
        finally:
            caller.wait_stream(self.compute)
        for item in value if isinstance(value, tuple) else ():
            if isinstance(item, torch.Tensor) and item.device == self.device:
                item.record_stream(caller)
        return value

    def now(self) -> Event | None:
        return _event(self.compute)  # 2

    def fetch(
        self, tensor: torch.Tensor, made: Event | None, sender: DeviceStream
    ) -> tuple[torch.Tensor, Event | None]:
        if tensor.is_cuda and tensor.device != sender.device:  # a parameter, of a denoiser on a third device
            made = _event(torch.cuda.current_stream(tensor.device))
        if tensor.device == self.device:
            return tensor, made
        arriving = self._copy_stream(self._from, sender.rank)
        if not isinstance(sender, CudaDeviceStream) or tensor.device != sender.device or made is None:
            with torch.cuda.stream(arriving):
                here = tensor.to(self.device)
            return here, _event(arriving)
        leaving = sender._copy_stream(sender._to, self.rank)
        leaving.wait_event(made)  # 3
        with torch.cuda.stream(leaving), torch.cuda.stream(arriving):
            here = tensor.to(self.device, non_blocking=True)  # 4
        tensor.record_stream(leaving)
        return here, _event(arriving)  # 5

    def _copy_stream(self, streams: dict[int, torch.cuda.Stream], peer: int) -> torch.cuda.Stream:
        if peer not in streams:
            streams[peer] = STREAMS.take(self.device, COPIES_FIRST)
        return streams[peer]

    def accept(self, tensor: torch.Tensor, there: Event) -> None:
        self.compute.wait_event(there)  # 6
        tensor.record_stream(self.compute)

    def end(self, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        copies = (*self._from.values(), *self._to.values())
        while not (self._ended or all(stream.query() for stream in (self.compute, *copies))):
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_S)
        if not self._ended:
            self._ended = True
            for stream in copies:
                STREAMS.give_back(self.device, COPIES_FIRST, stream)
            if not self._has_share:
                STREAMS.give_back(self.device, 0, self.compute)
        return True
