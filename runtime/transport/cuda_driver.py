"""Memory that GPUs and processes share, by the calls of CUDA's driver that torch has no functions for.

torch shares its own blocks with reference counts that nobody lowers when a process is killed. Memory that is allocated
here is no part of torch's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1
_DEVICE_MAP = 2


class _Handle(ctypes.Structure):
    _fields_ = [("content", ctypes.c_ubyte * HANDLE_BYTES)]


@cache
def _library() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeError(f"CUDA's driver cannot be called: {error}") from error


def _do(name: str, *arguments: Any) -> None:
    """Call a function of the driver; RuntimeError, in its own words, where it fails."""
    function = getattr(_library(), name, None)
    if function is None:
        raise RuntimeError(f"CUDA's driver has no {name}")
    status = function(*arguments)
    if status:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{name}: {(text.value or b'').decode() or f'error {status}'}")


@cache
def _context(index: int) -> ctypes.c_void_p:
    """The context of a GPU that torch uses too."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    _do("cuInit", 0)
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _do("cuDeviceGet", ctypes.byref(device), index)
    _do("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    return context


@contextmanager
def _on(index: int) -> Iterator[None]:
    before = ctypes.c_void_p()
    _do("cuCtxPushCurrent_v2", _context(index))
    try:
        yield
    finally:
        _do("cuCtxPopCurrent_v2", ctypes.byref(before))


def allocate(index: int, size_bytes: int) -> int:
    """The address of new memory of a GPU. index: of the GPU."""
    address = ctypes.c_uint64()
    with _on(index):
        _do("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
    return address.value


def free(index: int, address: int) -> None:
    """Free what ``allocate`` has returned; no other process may use it any more."""
    with _on(index):
        _do("cuMemFree_v2", ctypes.c_uint64(address))


def export(index: int, address: int) -> bytes:
    """What another process opens the memory by that ``allocate`` has returned."""
    handle = _Handle()
    with _on(index):
        _do("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
    return bytes(handle.content)


def open_exported(index: int, handle: bytes) -> int:
    """The address, for a GPU of this process, of memory that another process has exported."""
    address = ctypes.c_uint64()
    with _on(index):
        given = _Handle.from_buffer_copy(handle)
        _do("cuIpcOpenMemHandle_v2", ctypes.byref(address), given, ctypes.c_uint(_LAZY_PEER_ACCESS))
    return address.value


def close_exported(index: int, address: int) -> None:
    """Undo ``open_exported``; nothing may use the memory any more."""
    with _on(index):
        _do("cuIpcCloseMemHandle", ctypes.c_uint64(address))


def lock(index: int, address: int, size_bytes: int) -> int:
    """Page-lock memory of the host, for a GPU to copy to and from while the host goes on.

    Args:
        index: of the GPU.
        address: of mapped memory, at the beginning of a page.
        size_bytes: how much.

    Returns:
        The address by which the GPU knows it.
    """
    known_as = ctypes.c_uint64()
    with _on(index):
        _do("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), ctypes.c_uint(_DEVICE_MAP))
        try:
            _do("cuMemHostGetDevicePointer_v2", ctypes.byref(known_as), ctypes.c_void_p(address), ctypes.c_uint(0))
        except RuntimeError:
            unlock(index, address)
            raise
    return known_as.value


def unlock(index: int, address: int) -> None:
    """Undo ``lock``; no copy may be under way."""
    with _on(index):
        _do("cuMemHostUnregister", ctypes.c_void_p(address))


def write_word(stream: torch.cuda.Stream, target: int, value: int) -> None:
    """Queue on a stream that 4 bytes are written, after which whoever reads them sees all that the stream wrote before.

    Args:
        stream: where to queue it.
        target: the address of the bytes by which the stream's GPU knows them.
        value: less than 2^32.
    """
    with _on(stream.device.index):
        _do(
            "cuStreamWriteValue32_v2",
            ctypes.c_void_p(stream.cuda_stream),
            ctypes.c_uint64(target),
            ctypes.c_uint32(value),
            ctypes.c_uint(0),  # with a memory fence before it
        )


def copy(stream: torch.cuda.Stream, target: int, source: int, size_bytes: int) -> None:
    """Queue a copy on a stream, from any address to any other that its GPU reaches."""
    with _on(stream.device.index):
        _do(
            "cuMemcpyAsync",
            ctypes.c_uint64(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(size_bytes),
            ctypes.c_void_p(stream.cuda_stream),
        )


def device_of(address: int) -> int:
    """The GPU, as this process counts them, that memory is of."""
    found = ctypes.c_int(-1)
    _do(
        "cuPointerGetAttribute", ctypes.byref(found), 9, ctypes.c_uint64(address)
    )  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return found.value


def tensor_at(index: int, address: int, size_bytes: int, owner: object) -> torch.Tensor:
    """Bytes at an address as a tensor. owner: lives as long as anything uses them."""
    with torch.cuda.device(index):  # torch asks whose the address is, which makes a context on the current GPU
        made: torch.Tensor = torch.as_tensor(_Bytes(address, size_bytes, owner), device=f"cuda:{index}")
    if made.data_ptr() != address:
        raise RuntimeError("torch has copied memory that it was to use where it is")
    return made


class _Bytes:
    """What torch.as_tensor makes a tensor of, and keeps as long as it is used."""

    def __init__(self, address: int, size_bytes: int, owner: object) -> None:
        self.owner = owner
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,), "typestr": "|u1", "data": (address, False), "strides": None, "version": 3,
        }  # fmt: skip
