"""StagedMemory: slots for messages between GPUs that cannot read each other's memory, as most cards for consumers.

A slot has room on the sender's GPU, as much in memory of the host that both processes map and have page-locked, and a
word beside that. Neither host waits for a GPU:

    sender's compute stream   its copy stream        hosts                        reader's copy stream   and compute
    copies the tensor to           :
    the slot's room                :                 sender: clears the word
        :                     waits for that         sender: sends the packet
    (other work)              copies it to the host  reader: looks at the word
        :                     sets the word          reader: sees that it is set
        :                          :                     :                        copies it to its GPU
        :                          :                     :                            :                  waits for that
        :                          :                 reader: sees that that is        :                  reads it
        :                          :                 done, gives the slot back        :                      :

The tensor may be written to again once it is in the slot's room, so a copy through PCIe does not hold up the compute
stream. The driver has a stream set the word only after what it wrote before can be seen (cuStreamWriteValue32). A slot
is used again when its reader has given it back and its word is set: a reader that drops a message does not look.

The host's memory is page-locked in regions, never more than half of what the host has free then. It is given back when
the channel is closed and all copies are done (where that takes long, when the next one needs some), and when the
process ends, however it does. It is no part of what plans predict; the room on the GPU is (slot_bytes).
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from collections.abc import Callable, Sequence

import torch

from runtime.devices.memory import SHARED_REGION_BYTES, free_bytes
from runtime.transport import cuda_driver
from runtime.transport.copies import END_S, Arriving, CopyStream, FarSlot
from runtime.transport.layout import Layout, from_bytes
from runtime.transport.memory import Memory, Slot
from runtime.transport.packets import close_files
from runtime.transport.shared_memory import map_file, new_file

ALIGNMENT = 512  # bytes, as torch's own memory on GPUs; a slot's word has so many before the message
_PAGE = os.sysconf("SC_PAGESIZE")
_ON_ITS_WAY, _THERE = 0, 1

_DESCRIPTION = struct.Struct("=4q")  # number of the region, its size, offset of the slot, its size

_log = logging.getLogger("runtime")
_left: list[StagedMemory] = []  # closed, but a GPU may still copy to it or from it


class LockedRegion:
    """Memory of the host that is mapped and page-locked here.

    address, known_as: where it begins, for the host and for the GPU.

    Args:
        device: the GPU, with its index.
        file: its descriptor, closed here.
        size_bytes: how much; whole pages.
    """

    def __init__(self, device: torch.device, file: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._bytes = map_file(file, size_bytes)
        self._index = device.index
        self.address = self._bytes.data_ptr()
        self.known_as = cuda_driver.lock(self._index, self.address, size_bytes)

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Some of its bytes, for the host to read or write."""
        return self._bytes[offset : offset + size_bytes].numpy().data

    def unlock(self) -> None:
        """Make it ordinary memory again."""
        try:
            cuda_driver.unlock(self._index, self.address)
        except RuntimeError as error:  # a GPU that failed has already raised in its rank
            _log.debug("memory locked for cuda:%d is not given back: %s", self._index, error)


class Word:
    """Four bytes of a region: whether the message behind them is there.

    known_as: their address for the GPU.
    """

    def __init__(self, region: LockedRegion, offset: int) -> None:
        self._region = region
        self._here = ctypes.c_uint32.from_address(region.address + offset)
        self.known_as = region.known_as + offset

    def is_set(self) -> bool:
        return self._here.value == _THERE

    def put(self, value: int) -> None:
        self._here.value = value


class StagedSlot(Slot):
    """The sender's side of a slot. Its reader's is a FarSlot.

    Args:
        room: its memory on the GPU.
        region: its memory of the host; offset: where its word lies there, and the message behind it.
        leaving: the stream to copy on.
    """

    def __init__(self, room: torch.Tensor, region: LockedRegion, offset: int, leaving: CopyStream) -> None:
        self.size_bytes = room.nbytes
        self._bytes = room
        self._region = region
        self._begin = offset + ALIGNMENT
        self._address = region.address + self._begin
        self._word = Word(region, offset)
        self._word.put(_THERE)
        self._leaving = leaving
        self._room: tuple[Layout, torch.Tensor] | None = None  # for messages laid out like the last one

    def is_free(self) -> bool:
        return self._word.is_set()

    def write(self, tensor: torch.Tensor, layout: Layout) -> None:
        if self._room is None or self._room[0] != layout:
            self._room = layout, from_bytes(self._bytes[: layout.size_bytes], layout)
        self._room[1].copy_(tensor, non_blocking=True)
        self._word.put(_ON_ITS_WAY)
        leaving = self._leaving.stream
        leaving.wait_event(torch.cuda.current_stream(leaving.device).record_event())
        cuda_driver.copy(leaving, self._address, self._bytes.data_ptr(), layout.size_bytes)
        cuda_driver.write_word(leaving, self._word.known_as, _THERE)

    def view(self, size_bytes: int) -> memoryview:
        """The message in the host's memory, which is whole there once the slot is free."""
        return self._region.view(self._begin, size_bytes)

    def lend(self, layout: Layout, returned: Callable[[], None]) -> tuple[torch.Tensor, None]:
        raise NotImplementedError("only its reader reads it")


class StagedMemory(Memory):
    """Slots of one channel in the host's memory, for GPUs. device: this process's, with its index."""

    name = "page-locked memory of the host"
    keeps = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made: list[LockedRegion] = []
        self._filled = 0  # bytes of the last of those that are in use
        self._open: dict[int, LockedRegion] = {}
        self._slots: list[StagedSlot] = []
        self._leaving: CopyStream | None = None
        self._arriving: Arriving | None = None

    def make(self, owner: int, size_bytes: int) -> tuple[StagedSlot, bytes, list[int]]:
        length = _aligned(size_bytes)
        with torch.inference_mode(False):  # which it outlasts
            room = torch.empty(length, dtype=torch.uint8, device=self._device)
        region, offset, files = self._claim(ALIGNMENT + length)
        self._leaving = self._leaving or CopyStream(self._device)
        slot = StagedSlot(room, region, offset, self._leaving)
        self._slots.append(slot)
        return slot, _DESCRIPTION.pack(len(self._made) - 1, region.size_bytes, offset, length), files

    def make_landing(self, size_bytes: int) -> tuple[memoryview, FarSlot]:
        """Room for messages that this host writes there itself: its bytes, and the slot that they are read from."""
        length = _aligned(size_bytes)
        region, offset, files = self._claim(length)
        close_files(files)
        self._arriving = self._arriving or Arriving(self._device)
        slot = FarSlot(region, region.address + offset, length, lambda: True, self._arriving)
        return region.view(offset, length), slot

    def _claim(self, length: int) -> tuple[LockedRegion, int, list[int]]:
        """So many bytes that nobody has: where, and the descriptor of their region's file where that is new."""
        files = []
        if not self._made or self._filled + length > self._made[-1].size_bytes:
            files = self._make_region(length)
        offset = self._filled
        self._filled += length
        return self._made[-1], offset, files

    def _make_region(self, least_bytes: int) -> list[int]:
        _left[:] = [memory for memory in _left if not memory._unlocked(0.0)]
        total = max(-(-least_bytes // _PAGE) * _PAGE, SHARED_REGION_BYTES)
        free = free_bytes("cpu")
        if free is not None and total > free // 2:
            raise MemoryError(f"of {free} bytes that the host has free, {total} would be page-locked")
        file = new_file(total)
        try:
            self._made.append(LockedRegion(self._device, os.dup(file), total))
        except BaseException:
            os.close(file)
            raise
        self._filled = 0
        return [file]

    def open(self, description: bytes, files: Sequence[int]) -> FarSlot:
        try:
            number, total, offset, length = _DESCRIPTION.unpack(description)
        except struct.error:
            raise ValueError(f"a slot is described in {len(description)} bytes") from None
        if files:
            self._open[number] = LockedRegion(self._device, files[0], total)
        region = self._open.get(number)
        most = region.size_bytes - ALIGNMENT if region is not None else 0
        if region is None or offset < 0 or length < 0 or offset + length > most or offset % ALIGNMENT:
            raise ValueError(f"no slot of {length} bytes lies at {offset} of region {number}")
        self._arriving = self._arriving or Arriving(self._device)
        address = region.address + offset + ALIGNMENT
        return FarSlot(region, address, length, Word(region, offset).is_set, self._arriving)

    def forget(self, owner: int) -> None:
        pass

    def close(self) -> None:
        if not self._unlocked(0.0 if _left else END_S):
            _left.append(self)

    def _unlocked(self, timeout_s: float) -> bool:
        """Unlock all when its copies are done; False where they are not in time."""
        streams = [stream for stream in (self._leaving, self._arriving) if stream is not None]
        if not all(stream.end(timeout_s) for stream in streams):
            return False
        for region in (*self._made, *self._open.values()):
            region.unlock()
        self._made.clear()
        self._open.clear()
        self._slots.clear()
        return True


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT
