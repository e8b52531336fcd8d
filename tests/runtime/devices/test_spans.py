"""span: what a rank computes has a name where somebody profiles it, and only there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from runtime.devices import spans
from runtime.devices.spans import span

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """NVTX ranges that were made, by name."""
    made: list[str] = []

    @contextmanager
    def note(name: str) -> Iterator[None]:
        made.append(name)
        yield

    monkeypatch.setattr(torch.cuda.nvtx, "range", note)
    spans._has_nvtx.cache_clear()
    yield made
    spans._has_nvtx.cache_clear()


def test_nothing_is_named_where_nobody_looks() -> None:
    assert isinstance(span("component 0", CPU), nullcontext)


def test_a_gpus_work_has_an_nvtx_range(ranges: list[str]) -> None:
    for _ in range(2):
        with span("component 0", GPU):
            pass
    assert ranges[-2:] == ["component 0", "component 0"]


def test_a_torch_without_nvtx_does_without(ranges: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise RuntimeError("NVTX functions not installed. Are you sure you have a CUDA build?")

    monkeypatch.setattr(torch.cuda.nvtx, "range", refuse)
    assert isinstance(span("component 0", GPU), nullcontext)


def test_a_profiler_sees_the_name(ranges: list[str]) -> None:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler, span("component 0", GPU):
        torch.ones(2).sum()
    assert "component 0" in {event.key for event in profiler.key_averages()}
    assert ranges == []
    assert isinstance(span("component 0", CPU), nullcontext), "and nothing after it has stopped"
