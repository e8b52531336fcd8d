"""record: what a failed capture leaves behind is cleaned up, or the process says that it cannot be."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from runtime.devices import capture
from runtime.devices.capture import CaptureFailed, GraphMemory, check_usable, record
from runtime.errors import EngineError

GPU = torch.device("cuda", 0)


class Card:
    """A GPU's allocator, as far as captures concern it: one whose end fails stays under way until it is abandoned."""

    def __init__(self, patch: pytest.MonkeyPatch, *, abandons: bool) -> None:
        self.under_way: list[Any] = []
        self.spoiled: set[Any] = set()
        self.abandons = abandons
        self.capturing = self.invalid = False
        self.pools = iter(range(1, 99))
        card = self

        class Graph:
            replay = staticmethod(lambda: None)

            def capture_begin(self, pool: Any = None, capture_error_mode: str = "") -> None:
                assert pool not in card.spoiled, "nothing can be captured into the pool of a failed capture"
                self.pool = pool
                card.under_way.append(pool)
                card.capturing, card.invalid = True, False

            def capture_end(self) -> None:
                card.capturing = False
                if card.invalid:
                    card.spoiled.add(self.pool)
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
                card.under_way.remove(self.pool)

        for name, value in {
            "CUDAGraph": Graph,
            "graph_pool_handle": lambda: next(self.pools),
            "current_stream": lambda: "a stream",
            "default_stream": lambda: "another",
            "stream": lambda stream: nullcontext(),
            "Stream": lambda *_: "a new one",
            "device": lambda device: nullcontext(),
            "synchronize": lambda *_: None,
            "empty_cache": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(capture, "abandon_capture", self.abandon)
        patch.setattr(capture, "_capture_nothing", lambda device: None)
        patch.setattr(capture, "_memory_comes_back", lambda device: not self.under_way)
        patch.setattr(capture, "_numbers_are_drawn", lambda device: not self.under_way)
        patch.setattr(capture, "_unusable", [])
        patch.setattr(capture, "_failed", [])

    def abandon(self, device: int, pool: Any) -> None:
        if not self.abandons:
            raise AttributeError("no such call")
        self.under_way.remove(pool)

    def waits(self) -> Any:
        if self.capturing:
            self.invalid = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")
        return (1,)


def test_a_failed_capture_is_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    card, memory = Card(monkeypatch, abandons=True), GraphMemory()
    with pytest.raises(CaptureFailed, match="not permitted when stream is capturing") as caught:
        record(card.waits, [], memory, GPU)
    assert str(caught.value).endswith("stream is capturing"), "one line, and not what the end says"
    assert isinstance(caught.value.cause, RuntimeError)
    assert not card.under_way
    check_usable()
    assert record(lambda: (2,), [], memory, GPU).outputs == (2,)


def test_an_error_that_ends_no_capture_needs_no_cleaning(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, abandons=False)

    def fails() -> Any:
        raise ValueError("its own")

    with pytest.raises(CaptureFailed, match="ValueError: its own"):
        record(fails, [], GraphMemory(), GPU)
    check_usable()
    assert not card.under_way


def test_a_process_that_cannot_capture_any_more_says_so_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, abandons=False)
    with pytest.raises(EngineError, match="start this process anew, with cuda_graphs=False"):
        record(card.waits, [], GraphMemory(), GPU)
    with pytest.raises(EngineError, match="could not be captured"):
        record(lambda: (2,), [], GraphMemory(), GPU)
    with pytest.raises(EngineError, match="could not be captured"):
        check_usable()


def test_no_garbage_is_collected_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch, abandons=True)
    seen = []

    class Loan:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            seen.append("gone")

    def function() -> Any:
        for _ in range(2000):
            Loan()
        seen.append("captured")
        return (1,)

    threshold = gc.get_threshold()
    gc.set_threshold(10)
    try:
        record(function, [], GraphMemory(), GPU)
        assert gc.isenabled()
    finally:
        gc.set_threshold(*threshold)
    assert seen[0] == "captured"
    gc.collect()
    assert seen.count("gone") == 2000
