"""The header that precedes every message between two processes, and says what the message is.

It has a fixed length, since a receiver must know how much comes. Its words are int64:

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
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from partitioner.graph.tensor_meta import name_of_dtype
from runtime.transport.mailbox import MessageKey

MAGIC = 0x44495046  # "DIPF"
MOST_DIMS = 12
SEQUENCE = 2  # the word that the channel fills in
_KEY, TENSOR, SIZE_BYTES, _DIMS = 3, 7, 8, 9
HEADER_WORDS = _DIMS + 1 + 2 * MOST_DIMS
DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


def header_words(plan_hash: int, key: MessageKey, tensor: torch.Tensor | None = None) -> list[int]:
    """The words of the header for a tensor of at most MOST_DIMS dimensions, or for none."""
    return header_of(plan_hash, key, tensor_words(tensor))


def header_of(plan_hash: int, key: MessageKey, described: Sequence[int]) -> list[int]:
    """The words of the header for what ``tensor_words`` has described."""
    return [MAGIC, plan_hash, 0, *key, *described]


def key_of(words: Sequence[int]) -> MessageKey:
    """The key of a header's message."""
    return MessageKey(*words[_KEY:TENSOR])


def tensor_words(tensor: torch.Tensor | None) -> list[int]:
    """The words of a header from TENSOR on, which say what its tensor is."""
    described = [0, 0, 0] if tensor is None else [DTYPES.index(name_of_dtype(tensor)), tensor.nbytes, tensor.dim()]
    shape, stride = ((), ()) if tensor is None else (tensor.shape, tensor.stride())
    padding = [0] * (MOST_DIMS - len(shape))
    return [*described, *shape, *padding, *stride, *padding]


def shape_and_strides(words: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a header says of its tensor's shape and strides; of more dimensions than there can be, only their number."""
    dims = words[_DIMS]
    if not 0 <= dims <= MOST_DIMS:
        return (dims,), (0,)
    shape, strides = words[_DIMS + 1 : _DIMS + 1 + MOST_DIMS], words[_DIMS + 1 + MOST_DIMS :]
    return tuple(shape[:dims]), tuple(strides[:dims])
