"""alone_with: threads wait for each other where they have to do with one module, and for nothing else."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.errors import TraceError
from partitioner.graph import alone
from partitioner.graph.alone import alone_with, parts_of, works_alone
from partitioner.graph.export import trace
from partitioner.graph.torch_private.hooks import without_own_hooks
from tests.support.forks import in_a_child


def module() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.SiLU()).eval()


@pytest.mark.parametrize(
    "shared",
    [lambda whole: whole, lambda whole: whole[0], without_own_hooks],
    ids=["all", "a part", "without its hooks"],
)
def test_threads_wait_for_each_other_where_modules_have_parts_in_common(shared: Any) -> None:
    whole, other, done = module(), module(), []

    def work(parts: alone.Parts) -> None:
        with alone_with(parts):
            done.append("other")

    with ThreadPoolExecutor(1) as pool:
        with alone_with(parts_of(whole)):
            pool.submit(work, parts_of(other)).result()
            waits = pool.submit(work, parts_of(shared(whole)))
            with alone_with(parts_of(whole[0])):
                done.append("own")
        waits.result()
    assert done == ["other", "own", "other"]
    assert not works_alone()


def test_who_waits_for_ever_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "LIMIT_S", 0.01)
    parts = parts_of(module())
    with alone_with(parts), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: alone_with(parts).__enter__())
        with pytest.raises(TraceError, match=r"another thread has traced this module for 0\.01 s"):
            asked.result()


def test_a_process_that_was_forked_waits_for_no_thread_of_its_parents() -> None:
    whole, ends = module(), threading.Event()
    begun = threading.Event()

    def trace_it() -> None:
        signal.alarm(60)
        trace(whole, {"input": torch.zeros(2, 4)}, {"input": "latent"})

    def work() -> None:
        with alone_with(parts_of(whole) | alone.LIBRARIES):
            begun.set()
            ends.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work)
        begun.wait()
        try:
            in_a_child(trace_it)
        finally:
            ends.set()
