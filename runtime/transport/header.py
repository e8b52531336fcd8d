"""The header that precedes every message between two processes, and says what the message is.

It has a fixed length, since a receiver must know how much comes. Its words are int64, the most significant byte first:

    word     content
    0        MAGIC
    1        first bits of the plan's hash
    2        sequence: how many messages the sender has sent to this reader before
    3 - 6    the message's key: table, wire, context, step
    7        dtype, as an index of DTYPES
    8        size of the payload in bytes
    9        number of dimensions
    10 - 21  shape, padded with zeros
    22 - 33  strides, likewise

The words from 7 on describe the tensor. They are the same in every message of a wire, mostly, so that both sides keep
them as bytes and read them once.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch

from partitioner.graph.tensor_meta import name_of_dtype
from runtime.transport.mailbox import MessageKey

MAGIC = 0x44495046  # "DIPF"
MOST_DIMS = 12
DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip
_HEAD = struct.Struct("!7q")
_TENSOR = struct.Struct(f"!{3 + 2 * MOST_DIMS}q")
HEADER_BYTES = _HEAD.size + _TENSOR.size


class Header(NamedTuple):
    """A header as it came. described: the words that describe the tensor."""

    magic: int
    plan_hash: int
    sequence: int
    key: MessageKey
    described: bytes


class Description(NamedTuple):
    """What a header says of its tensor. dtype: its name, or what was found in its place."""

    dtype: str
    size_bytes: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def header_bytes(plan_hash: int, sequence: int, key: MessageKey, described: bytes) -> bytes:
    """The header of a message. described: what ``describe`` gave for its tensor."""
    return _HEAD.pack(MAGIC, plan_hash, sequence, *key) + described


def read_header(content: bytes | bytearray) -> Header:
    """The header at the beginning of at least HEADER_BYTES."""
    magic, plan_hash, sequence, *key = _HEAD.unpack_from(content)
    return Header(magic, plan_hash, sequence, MessageKey._make(key), bytes(content[_HEAD.size : HEADER_BYTES]))


def describe(tensor: torch.Tensor | None) -> bytes:
    """The words of a header that describe a tensor of at most MOST_DIMS dimensions, or none."""
    if tensor is None:
        return bytes(_TENSOR.size)
    padding = [0] * (MOST_DIMS - tensor.dim())
    dtype = DTYPES.index(name_of_dtype(tensor))
    return _TENSOR.pack(dtype, tensor.nbytes, tensor.dim(), *tensor.shape, *padding, *tensor.stride(), *padding)


def description_of(described: bytes) -> Description:
    """What is described; of more dimensions than there can be, only their number."""
    dtype, size_bytes, dims, *rest = _TENSOR.unpack(described)
    name = DTYPES[dtype] if 0 <= dtype < len(DTYPES) else f"dtype {dtype}"
    if not 0 <= dims <= MOST_DIMS:
        return Description(name, size_bytes, (dims,), (0,))
    return Description(name, size_bytes, tuple(rest[:dims]), tuple(rest[MOST_DIMS : MOST_DIMS + dims]))
