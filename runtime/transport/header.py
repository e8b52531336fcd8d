"""The header that precedes every message between two processes, and says what the message is.

It has a fixed length, since gloo's receiver must know how much comes. Its words are int64:

    word     content
    0        MAGIC
    1        first bits of the plan's hash
    2        sequence: how many messages and receipts the sender has sent to this reader before
    3        received: how many it has received from this reader
    4 - 7    the message's key: table, wire, context, step; that of RECEIPT where no payload follows
    8        dtype, as an index of DTYPES
    9        size of the payload in bytes
    10       number of dimensions
    11 - 22  shape, padded with zeros
    23 - 34  strides, likewise
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.transport.mailbox import MessageKey

MAGIC = 0x44495046  # "DIPF"
MOST_DIMS = 12
HEADER_WORDS = 11 + 2 * MOST_DIMS
SEQUENCE, RECEIVED = 2, 3  # words that the channel fills in
HEADER_TAG, PAYLOAD_TAG = 1, 2  # by which gloo tells headers and payloads apart
RECEIPT = MessageKey(0, -1, 0, 0)  # of a header that only says what has arrived
DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


def header_words(plan_hash: int, key: MessageKey, tensor: torch.Tensor | None = None) -> list[int]:
    """The words of the header for a tensor of at most MOST_DIMS dimensions, or, without one, for a receipt."""
    return [MAGIC, plan_hash, 0, 0, *key, *tensor_words(tensor)]


def tensor_words(tensor: torch.Tensor | None) -> list[int]:
    """The words of a header from the eighth on, which say what its tensor is."""
    described = [0, 0, 0] if tensor is None else [DTYPES.index(dtype_name(tensor)), tensor.nbytes, tensor.dim()]
    shape, stride = ((), ()) if tensor is None else (tensor.shape, tensor.stride())
    padding = [0] * (MOST_DIMS - len(shape))
    return [*described, *shape, *padding, *stride, *padding]


def shape_and_strides(words: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a header says of its tensor's shape and strides; of more dimensions than there can be, only their number."""
    dims = words[10]
    if not 0 <= dims <= MOST_DIMS:
        return (dims,), (0,)
    return tuple(words[11 : 11 + dims]), tuple(words[11 + MOST_DIMS : 11 + MOST_DIMS + dims])


def dtype_name(tensor: torch.Tensor) -> str:
    """The name of a tensor's dtype, without "torch."."""
    return str(tensor.dtype).removeprefix("torch.")
