"""DeviceMemory: slots in memory of a GPU that two processes share by CUDA IPC; nothing goes through the host.

The memory is the sender's. Each slot has two events that both processes know:

    sender                                  reader
    copies the tensor into the slot             :
    records ``full``                            :
    sends the packet             ------->   asks until ``full`` is done: the message is there
        :                                   kernels read the slot, where it is
        :                                   records ``free``, when the last tensor that uses it has gone
    asks whether ``free`` is done           gives the slot back
    uses it again

It is the hosts that ask, and no stream waits for another process's event: were that process killed before the event is
done, the stream would wait for ever (an H100 has shown it). So a rank whose GPU is stuck is found like one that does
not answer.

A reader on another GPU copies the message, on a stream of its own, and gives the slot back when the copy is done: an
event can be recorded on streams of its own GPU only.

Memory is never given back before the channel is closed, but used again for other wires, for a sender must not free what
a reader still has open. Nor is it before the streams of this process are done with it; where that takes long, it is
when another channel is closed.
"""

from __future__ import annotations

import logging
import struct
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import torch

from runtime.devices.memory import SHARED_REGION_BYTES
from runtime.devices.stream import Event
from runtime.transport import cuda_driver
from runtime.transport.copies import END_S, LOOK_S, Arriving, FarSlot
from runtime.transport.layout import Layout, from_bytes
from runtime.transport.memory import Memory, Slot

ALIGNMENT = 512  # bytes, as torch's own memory on GPUs

_DESCRIPTION = struct.Struct(f"=4q{cuda_driver.HANDLE_BYTES}s64s64s")  # region, its size, offset, length; handles

_log = logging.getLogger("runtime")
_left: list[DeviceMemory] = []  # closed, but a GPU may still read it or write to it


class DeviceRegion:
    """Memory of a GPU: made here, or another process's that is opened here.

    Args:
        device: the GPU that uses it here.
        handle: of another process's memory; none: to be made here.
        size_bytes: how much.
    """

    def __init__(self, device: torch.device, handle: bytes | None, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        index = device.index
        if handle is None:
            self.address = cuda_driver.allocate(index, size_bytes)
            weakref.finalize(self, _quietly, cuda_driver.free, index, self.address).atexit = False
        else:
            self.address = cuda_driver.open_exported(index, handle)
            weakref.finalize(self, _quietly, cuda_driver.close_exported, index, self.address).atexit = False


def _quietly(end: Callable[[int, int], None], index: int, address: int) -> None:
    try:
        end(index, address)
    except RuntimeError as error:  # a GPU that failed has already raised in its rank
        _log.debug("shared memory of cuda:%d is not given back: %s", index, error)


class DeviceSlot(Slot):
    """Some bytes of a region, on either side of processes that use one GPU, and on the sender's side in any case.

    Args:
        device: the GPU.
        region: where it lies; offset, size_bytes: where there, and how long it is.
        events: of the slot, ``full`` and ``free``.
        users: of its memory, by handle; streams of this process that read it or write to it are added.
    """

    def __init__(
        self,
        device: torch.device,
        region: DeviceRegion,
        offset: int,
        size_bytes: int,
        events: tuple[Event, Event],
        users: dict[int, torch.cuda.Stream],
    ) -> None:
        self.size_bytes = size_bytes
        self._device = device
        self._region = region
        self._address = region.address + offset
        self._full, self._free = events
        self._users = users
        self._used = False
        self._room: tuple[Layout, torch.Tensor] | None = None  # for messages laid out like the last one

    def is_free(self) -> bool:
        return not self._used or _is_done(self._free)

    def is_written(self) -> bool:
        return _is_done(self._full)

    def write(self, tensor: torch.Tensor, layout: Layout) -> None:
        stream = self._stream()
        if self._room is None or self._room[0] != layout:
            room = cuda_driver.tensor_at(self._device.index, self._address, layout.size_bytes, self._region)
            self._room = layout, from_bytes(room, layout)
        self._room[1].copy_(tensor, non_blocking=True)
        self._full.record(stream)
        self._used = True

    def lend(self, layout: Layout, returned: Callable[[], None]) -> tuple[torch.Tensor, None]:
        loan = _Loan(self._region)
        stream = self._stream()
        weakref.finalize(loan, _give_back, self._free, stream, returned).atexit = False
        return from_bytes(
            cuda_driver.tensor_at(self._device.index, self._address, layout.size_bytes, loan), layout
        ), None

    def _stream(self) -> torch.cuda.Stream:
        """The current one, which is about to use the slot."""
        stream = torch.cuda.current_stream(self._device)
        self._users[stream.cuda_stream] = stream
        return stream


class _Loan:
    """Lives as long as anything uses a message in its slot, and keeps the slot's region."""

    def __init__(self, region: DeviceRegion) -> None:
        self.region = region


def _give_back(free: Event, stream: torch.cuda.Stream, returned: Callable[[], None]) -> None:
    free.record(stream)
    returned()


class DeviceMemory(Memory):
    """Slots of one channel in the memory of GPUs. device: this process's, with its index."""

    keeps = True

    def __init__(self, device: torch.device) -> None:
        self.name = f"memory of {device}"
        self._device = device
        self._made: list[DeviceRegion] = []
        self._filled = 0  # bytes of the last of those that are in use
        self._open: dict[int, DeviceRegion] = {}
        self._users: dict[int, torch.cuda.Stream] = {}
        self._arriving: Arriving | None = None

    def make(self, owner: int, size_bytes: int) -> tuple[DeviceSlot, bytes, list[int]]:
        length = -(-size_bytes // ALIGNMENT) * ALIGNMENT
        handle = b""
        if not self._made or self._filled + length > self._made[-1].size_bytes:
            region = DeviceRegion(self._device, None, max(length, SHARED_REGION_BYTES))
            handle = cuda_driver.export(self._device.index, region.address)
            self._made.append(region)
            self._filled = 0
        number, region, offset = len(self._made) - 1, self._made[-1], self._filled
        self._filled += length
        full, free = (_shared_event(self._device) for _ in range(2))
        description = _DESCRIPTION.pack(number, region.size_bytes, offset, length, handle, full[1], free[1])
        return DeviceSlot(self._device, region, offset, length, (full[0], free[0]), self._users), description, []

    def open(self, description: bytes, files: Sequence[int]) -> Slot:
        try:
            number, total, offset, length, handle, full, free = _DESCRIPTION.unpack(description)
        except struct.error:
            raise ValueError(f"a slot is described in {len(description)} bytes") from None
        if any(handle):
            self._open[number] = DeviceRegion(self._device, handle, total)
        region = self._open.get(number)
        if region is None or offset < 0 or length < 0 or offset + length > region.size_bytes or offset % ALIGNMENT:
            raise ValueError(f"no slot of {length} bytes lies at {offset} of region {number}")
        made = _event_of(self._device, full)
        if cuda_driver.device_of(region.address) != self._device.index:
            self._arriving = self._arriving or Arriving(self._device)
            return FarSlot(region, region.address + offset, length, partial(_is_done, made), self._arriving)
        events = made, _event_of(self._device, free)
        return DeviceSlot(self._device, region, offset, length, events, self._users)

    def forget(self, owner: int) -> None:
        pass

    def close(self) -> None:
        _left[:] = [memory for memory in _left if not memory._is_over(0.0)]
        if not self._is_over(0.0 if _left else END_S):
            _left.append(self)

    def _is_over(self, timeout_s: float) -> bool:
        """Whether no stream of this process uses any of it any more; waits for that."""
        until = time.monotonic() + timeout_s
        try:
            while not all(stream.query() for stream in self._users.values()):
                if time.monotonic() > until:
                    return False
                time.sleep(LOOK_S)
        except RuntimeError as error:  # a GPU that failed has already raised in its rank, and does nothing more
            _log.debug("memory of %s is given back: %s", self._device, error)
        return self._arriving is None or self._arriving.end(max(0.0, until - time.monotonic()))


def _shared_event(device: torch.device) -> tuple[Event, bytes]:
    """A new event that other processes can know, and what they know it by."""
    with torch.cuda.device(device):
        event = Event(interprocess=True)  # type: ignore[no-untyped-call]
        return event, event.ipc_handle()  # type: ignore[no-untyped-call]


def _is_done(event: Event) -> bool:
    done: bool = event.query()  # type: ignore[no-untyped-call]
    return done


def _event_of(device: torch.device, handle: bytes) -> Event:
    """Another process's event."""
    event: Event = Event.from_ipc_handle(device, handle)  # type: ignore[no-untyped-call]
    return event
