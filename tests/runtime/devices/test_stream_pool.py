"""StreamPool: engines use the same streams one after the other, and never one at the same time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtime.devices.acceleration import device_streams
from runtime.devices.stream_pool import StreamPool

GPU = torch.device("cuda:0")


def torchs(count: int) -> Callable[[torch.device, int], Any]:
    """Hands out so many streams in turn, as torch does."""
    handles = itertools.cycle(range(1, count + 1))
    return lambda device, priority: SimpleNamespace(cuda_stream=next(handles), device=device, priority=priority)


def test_streams_are_used_again_in_the_same_order() -> None:
    pool = StreamPool(torchs(32))
    first = [pool.take(GPU) for _ in range(4)]
    for stream in reversed(first):
        pool.give_back(GPU, 0, stream)
        pool.give_back(GPU, 0, stream)
    assert [pool.take(GPU) for _ in range(4)] == first
    other = pool.take(GPU)
    assert other not in first
    pool.give_back(GPU, 0, other)
    pool.give_back(GPU, 0, first[1])
    assert pool.take(GPU) is first[1], "the oldest, so that few engines need few"
    assert pool.take(torch.device("cuda:1")).device == torch.device("cuda:1")
    assert pool.take(GPU, -1).priority == -1


def test_streams_at_work_are_shared_only_where_torch_has_no_more() -> None:
    pool = StreamPool(torchs(4))
    kept = pool.take(GPU)
    for _ in range(9):
        taken = [pool.take(GPU) for _ in range(3)]
        assert len({kept.cuda_stream, *(stream.cuda_stream for stream in taken)}) == 4
        for stream in taken:
            pool.give_back(GPU, 0, stream)
    taken = [pool.take(GPU) for _ in range(3 + 4)]
    assert {stream.cuda_stream for stream in taken} == {1, 2, 3, 4}


@pytest.mark.gpu
def test_forty_engines_one_after_the_other_have_two_streams() -> None:
    handles = set()
    for _ in range(40):
        streams: list[Any] = device_streams(["cuda:0", "cuda:0"])
        handles |= {stream.compute.cuda_stream for stream in streams}
        for stream in streams:
            with stream.entered():
                torch.ones(64, 64, device="cuda:0") @ torch.ones(64, 64, device="cuda:0")
        held = torch.cuda.memory_reserved(0)
        assert all(stream.end(timeout_s=60) for stream in streams)
    assert len(handles) == 2
    assert torch.cuda.memory_reserved(0) == held
