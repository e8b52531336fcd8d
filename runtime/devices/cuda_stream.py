"""CudaDeviceStream: the streams of a rank on a GPU. Ranks are threads of one process; nobody waits on the host.

A rank has one compute stream, the current stream of its thread. A message is a tensor and a moment (an event): the
sender records it on its compute stream after the producer, the reader's compute stream waits for it where the message
is taken. Between ranks of one GPU nothing is copied. Between two GPUs each ordered pair of ranks has a pair of copy
streams, one on either GPU (torch copies on the source's current stream, between barriers with the target's): a copy
waits for its own producer only, and delays neither the sender's compute nor other messages, nor can messages that
travel both ways wait for each other.

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
  the ranks;
- the caller's inputs: the driver clones what it sends on its own compute stream, which has waited for the caller's
  stream; the caller's stream then waits for the driver's, so that an input that is freed or written to after the call
  is so after it was read. Other ranks see the clones only;
- results are allocated on the driver's compute stream and used on the caller's: recorded on them;
- static buffers and the memory of CUDA graphs belong to one rank's compute stream, and nothing leaves but copies
  (runtime.devices.cuda_graphs).
When the ranks end, every device stream is waited for, so that streams, graphs and parameters go when nothing uses them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from runtime.devices.cuda_shares import share_streams
from runtime.devices.stream import DeviceStream, Event
from runtime.errors import InputError

T = TypeVar("T")

COPIES_FIRST = -1  # priority of copy streams; torch takes them from another set than compute streams


def check_acceleration(transport: str, devices: Sequence[str], *, cuda_graphs: bool, green_contexts: bool) -> None:
    """InputError where CUDA graphs or green contexts are asked for and the ranks cannot have them."""
    if cuda_graphs and not all(torch.device(device).type == "cuda" for device in devices):
        raise InputError(f"CUDA graphs need GPUs, and the devices are {', '.join(devices)}; leave cuda_graphs out")
    if green_contexts and transport != "threads":
        raise InputError(
            f"green contexts need ranks that are threads of one process; use transport 'threads', not {transport!r}"
        )


def streams_on(devices: Sequence[str], *, green_contexts: bool = False) -> list[DeviceStream]:
    """A device stream for each rank. green_contexts: ranks that share a GPU get equal, disjoint shares of it.

    InputError where no two ranks share one.
    """
    whole = [_with_index(torch.device(device)) for device in devices]
    ranks_on = Counter(device for device in whole if device.type == "cuda")
    if green_contexts and max(ranks_on.values(), default=0) < 2:
        raise InputError(
            f"green contexts divide a GPU between ranks that share it, and none of {', '.join(devices)} is shared; "
            "name one several times, as in cuda:0,cuda:0, or leave them out"
        )
    streams: list[DeviceStream] = []
    placed: Counter[torch.device] = Counter()
    for rank, device in enumerate(whole):
        if device.type != "cuda":
            streams.append(DeviceStream(rank, device))
        elif green_contexts and ranks_on[device] > 1:
            streams.append(CudaDeviceStream(rank, device, share_streams(device.index, ranks_on[device])[placed[device]]))
        else:
            streams.append(CudaDeviceStream(rank, device, _stream(device)))
        placed[device] += 1
    return streams


def _stream(device: torch.device, priority: int = 0) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device, priority)  # type: ignore[no-untyped-call]
    return stream


def _moment(stream: torch.cuda.Stream) -> Event:
    moment: Event = stream.record_event()
    return moment


def _with_index(device: torch.device) -> torch.device:
    """ "cuda" is the current GPU."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


class CudaDeviceStream(DeviceStream):
    """The device stream of a rank on a GPU. compute: its compute stream."""

    def __init__(self, rank: int, device: torch.device, compute: torch.cuda.Stream) -> None:
        super().__init__(rank, device)
        self.compute = compute
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
        return _moment(self.compute)

    def fetch(
        self, tensor: torch.Tensor, made: Event | None, sender: DeviceStream
    ) -> tuple[torch.Tensor, Event | None]:
        if tensor.device == self.device:
            return tensor, made
        arriving = self._copy_stream(self._from, sender.rank)
        if not isinstance(sender, CudaDeviceStream) or made is None:
            with torch.cuda.stream(arriving):
                here = tensor.to(self.device)
            return here, _moment(arriving)
        leaving = sender._copy_stream(sender._to, self.rank)
        leaving.wait_event(made)
        with torch.cuda.stream(leaving), torch.cuda.stream(arriving):
            here = tensor.to(self.device, non_blocking=True)
        tensor.record_stream(leaving)
        return here, _moment(arriving)

    def _copy_stream(self, streams: dict[int, torch.cuda.Stream], peer: int) -> torch.cuda.Stream:
        if peer not in streams:
            streams[peer] = _stream(self.device, COPIES_FIRST)
        return streams[peer]

    def accept(self, tensor: torch.Tensor, there: Event) -> None:
        self.compute.wait_event(there)
        tensor.record_stream(self.compute)

    def synchronize(self) -> None:
        for stream in (self.compute, *self._from.values(), *self._to.values()):
            stream.synchronize()
