"""The header of a message: its words are where the table in the module says."""

from __future__ import annotations

import pytest
import torch

from runtime.transport.header import DTYPES, HEADER_WORDS, MAGIC, MOST_DIMS, header_words, key_of, shape_and_strides
from runtime.transport.mailbox import MessageKey


def test_the_words_say_what_the_message_is() -> None:
    words = header_words(7, MessageKey(1, 2, 3, 4), torch.zeros(5, 6, dtype=torch.bfloat16))
    assert words[:3] == [MAGIC, 7, 0]
    assert words[3:7] == [1, 2, 3, 4]
    assert key_of(words) == MessageKey(1, 2, 3, 4)
    assert words[7:10] == [DTYPES.index("bfloat16"), 60, 2]
    assert words[10:] == [5, 6] + [0] * 10 + [6, 1] + [0] * 10
    assert shape_and_strides(words) == ((5, 6), (6, 1))
    assert len(words) == HEADER_WORDS


def test_a_message_without_a_tensor_has_the_same_length() -> None:
    words = header_words(7, MessageKey(1, 2, 3, 4))
    assert not any(words[7:])
    assert len(words) == HEADER_WORDS


@pytest.mark.parametrize("dims", [-1, MOST_DIMS + 1])
def test_more_dimensions_than_there_can_be_are_not_read(dims: int) -> None:
    words = header_words(7, MessageKey(1, 2, 3, 4), torch.zeros(5, 6))
    words[9] = dims
    assert shape_and_strides(words)[0] == (dims,)
