"""HostMemory: slots in memory of the host that two processes map; it has no name, so nothing of it can be left behind.

A region is an anonymous file (memfd) whose descriptor travels over a Unix socket. Pages that were never written to take
no memory. It is given back when neither process maps it any more, however they end.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from runtime.transport.layout import Layout, from_bytes
from runtime.transport.memory import Memory, Slot

REGION_BYTES = 64 << 20
ALIGNMENT = 64  # bytes, as torch's own memory on CPUs

_DESCRIPTION = struct.Struct("=4q")  # number of the region, its size, offset of the slot, its size


def map_file(file: int, size_bytes: int) -> torch.Tensor:
    """The bytes of a file of at least that size, as a tensor that shares them with all who map it; closes the file."""
    try:
        if os.fstat(file).st_size < size_bytes:  # torch would make it longer
            raise ValueError(f"a shared file has {os.fstat(file).st_size} bytes, not {size_bytes}")
        return torch.from_file(f"/proc/self/fd/{file}", shared=True, size=size_bytes, dtype=torch.uint8)
    finally:
        os.close(file)


def new_file(size_bytes: int) -> int:
    """The descriptor of a new anonymous file, all zeros."""
    file = os.memfd_create("diffusion-partitioner")
    try:
        os.ftruncate(file, size_bytes)
    except BaseException:
        os.close(file)
        raise
    return file


class HostRegion:
    """A mapped region; ``bytes`` are all of its own."""

    def __init__(self, file: int, size_bytes: int) -> None:
        self.bytes = map_file(file, size_bytes)
        self.size_bytes = size_bytes


class HostSlot(Slot):
    """Some bytes of a region, from ``offset`` on."""

    def __init__(self, region: HostRegion, offset: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._region = region
        self._offset = offset
        self._address = region.bytes.data_ptr() + offset
        self._room: tuple[Layout, torch.Tensor] | None = None  # for messages laid out like the last one

    def write(self, tensor: torch.Tensor, layout: Layout) -> None:
        if self._room is None or self._room[0] != layout:
            room = self._region.bytes[self._offset : self._offset + layout.size_bytes]
            self._room = layout, from_bytes(room, layout)
        self._room[1].copy_(tensor)

    def lend(self, layout: Layout, returned: Callable[[], None]) -> tuple[torch.Tensor, None]:
        room = (ctypes.c_ubyte * layout.size_bytes).from_address(self._address)
        room.region = self._region  # type: ignore[attr-defined] # lives as long as what refers to it
        _lend(room, returned)  # torch keeps it until the last tensor that uses it has gone
        return torch.frombuffer(room, dtype=layout.dtype).as_strided(layout.shape, layout.stride), None


class _Loan(weakref.ref[Any]):
    """What weakref.finalize does, for a seventh of the time."""

    __slots__ = ("returned",)
    returned: Callable[[], None]


_lent: dict[int, _Loan] = {}  # by id


def _lend(room: object, returned: Callable[[], None]) -> None:
    """Have ``returned`` called when the room has gone, but not when the program ends."""
    loan = _Loan(room, _give_back)
    loan.returned = returned
    _lent[id(loan)] = loan


def _give_back(
    loan: weakref.ref[Any], lent: dict[int, _Loan] = _lent, ends: Callable[[], bool] = sys.is_finalizing
) -> None:
    returned = lent.pop(id(loan)).returned
    if not ends():  # or what it needs may have been taken apart
        returned()


class HostMemory(Memory):
    """Slots that lie behind each other in regions of 64 MiB, or in one of their own where they are longer."""

    name = "the host's memory"

    def __init__(self) -> None:
        self._made = 0
        self._filling: dict[int, tuple[int, HostRegion, int]] = {}  # owner -> number, region, bytes in use
        self._open: weakref.WeakValueDictionary[int, HostRegion] = weakref.WeakValueDictionary()

    def make(self, owner: int, size_bytes: int) -> tuple[HostSlot, bytes, list[int]]:
        length = -(-size_bytes // ALIGNMENT) * ALIGNMENT
        number, region, offset = self._filling.get(owner, (0, None, 0))
        files = []
        if region is None or offset + length > region.size_bytes:
            number, offset = self._made, 0
            self._made += 1
            total = max(length, REGION_BYTES)
            files = [new_file(total)]
            region = HostRegion(os.dup(files[0]), total)
        self._filling[owner] = number, region, offset + length
        return HostSlot(region, offset, length), _DESCRIPTION.pack(number, region.size_bytes, offset, length), files

    def open(self, description: bytes, files: Sequence[int]) -> HostSlot:
        try:
            number, total, offset, length = _DESCRIPTION.unpack(description)
        except struct.error:
            raise ValueError(f"a slot is described in {len(description)} bytes") from None
        region = self._open.get(number)
        if files:
            self._open[number] = region = HostRegion(files[0], total)
        if region is None or offset < 0 or length < 0 or offset + length > region.size_bytes or offset % ALIGNMENT:
            raise ValueError(f"no slot of {length} bytes lies at {offset} of region {number}")
        return HostSlot(region, offset, length)

    def forget(self, owner: int) -> None:
        self._filling.pop(owner, None)

    def close(self) -> None:
        pass
