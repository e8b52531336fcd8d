"""The header of a message: its words are where the table in the module says."""

from __future__ import annotations

import struct

import pytest
import torch

from runtime.transport.header import (
    DTYPES,
    HEADER_BYTES,
    MAGIC,
    MOST_DIMS,
    describe,
    description_of,
    header_bytes,
    read_header,
)
from runtime.transport.mailbox import MessageKey

KEY = MessageKey(1, 2, 3, 4)


def _words(header: bytes) -> list[int]:
    return list(struct.unpack("!34q", header))


def test_the_words_say_what_the_message_is() -> None:
    header = header_bytes(7, 5, KEY, describe(torch.zeros(5, 6, dtype=torch.bfloat16)))
    words = _words(header)
    assert words[:3] == [MAGIC, 7, 5]
    assert words[3:7] == [1, 2, 3, 4]
    assert words[7:10] == [DTYPES.index("bfloat16"), 60, 2]
    assert words[10:] == [5, 6] + [0] * 10 + [6, 1] + [0] * 10
    assert len(header) == HEADER_BYTES


def test_it_is_read_as_it_was_written_whatever_comes_behind_it() -> None:
    described = describe(torch.zeros(5, 6, dtype=torch.bfloat16))
    assert read_header(header_bytes(7, 5, KEY, described) + b"behind") == (MAGIC, 7, 5, KEY, described)
    assert description_of(described) == ("bfloat16", 60, (5, 6), (6, 1))


def test_a_message_without_a_tensor_has_the_same_length() -> None:
    header = header_bytes(7, 0, KEY, describe(None))
    assert not any(_words(header)[7:])
    assert len(header) == HEADER_BYTES


@pytest.mark.parametrize("dims", [-1, MOST_DIMS + 1])
def test_more_dimensions_than_there_can_be_are_not_read(dims: int) -> None:
    described = bytearray(describe(torch.zeros(5, 6)))
    described[16:24] = struct.pack("!q", dims)
    assert description_of(bytes(described)).shape == (dims,)


@pytest.mark.parametrize("dtype", [-1, len(DTYPES)])
def test_a_dtype_that_is_none_is_named_by_its_number(dtype: int) -> None:
    described = bytearray(describe(torch.zeros(5, 6)))
    described[:8] = struct.pack("!q", dtype)
    assert description_of(bytes(described)).dtype == f"dtype {dtype}"
