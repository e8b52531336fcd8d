"""Fake tensors, which have shapes and no values, and the modes that make them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)

__all__ = ["FakeTensor", "FakeTensorMode", "fake_mode_of", "memory_put_back", "unset_fake_temporarily", "untold"]


def fake_mode_of(values: Sequence[Any]) -> FakeTensorMode:
    """The mode that fake tensors among the values belong to, else a new one, which takes real tensors too."""
    found = detect_fake_mode(list(values))
    return found if found is not None else FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def memory_put_back(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """After the block, give tensors the memory back that they had: hooks that offload weights move it."""
    with unset_fake_temporarily():  # in fake mode ``data`` is fake
        held = [(tensor, tensor.data) for tensor in tensors if not isinstance(tensor, FakeTensor)]
    try:
        yield
    finally:
        with unset_fake_temporarily():
            for tensor, data in held:
                now = tensor.data
                if isinstance(now, FakeTensor) or now.device != data.device or now.data_ptr() != data.data_ptr():
                    tensor.data = data


@contextmanager
def untold() -> Iterator[None]:
    """Inside the block torch's fakes do not log, with a traceback, the errors that they also raise."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
