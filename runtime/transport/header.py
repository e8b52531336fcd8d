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
"""

from __future__ import annotations

import torch

from runtime.transport.mailbox import MessageKey

MAGIC = 0x44495046  # "DIPF"
MOST_DIMS = 12
HEADER_WORDS = 11 + MOST_DIMS
SEQUENCE, RECEIVED = 2, 3  # words that the channel fills in
HEADER_TAG, PAYLOAD_TAG = 1, 2  # by which gloo tells headers and payloads apart
RECEIPT = MessageKey(0, -1, 0, 0)  # of a header that only says what has arrived
DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


def header_words(plan_hash: int, key: MessageKey, tensor: torch.Tensor | None = None) -> list[int]:
    """The words of the header for a tensor of at most MOST_DIMS dimensions, or, without one, for a receipt."""
    dtype, size_bytes, shape = (0, 0, ()) if tensor is None else _described(tensor)
    padding = [0] * (MOST_DIMS - len(shape))
    return [MAGIC, plan_hash, 0, 0, *key, dtype, size_bytes, len(shape), *shape, *padding]


def _described(tensor: torch.Tensor) -> tuple[int, int, tuple[int, ...]]:
    return DTYPES.index(dtype_name(tensor)), tensor.nbytes, tuple(tensor.shape)


def dtype_name(tensor: torch.Tensor) -> str:
    """The name of a tensor's dtype, without "torch."."""
    return str(tensor.dtype).removeprefix("torch.")
