"""alone_with: threads wait for each other where they have to do with one module, and for nothing else."""

from __future__ import annotations

import signal
import sys
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
        alone_with(parts, lambda: done.append("other"))

    def meanwhile(pool: ThreadPoolExecutor) -> Any:
        pool.submit(work, parts_of(other)).result()
        waits = pool.submit(work, parts_of(shared(whole)))
        alone_with(parts_of(whole[0]), lambda: done.append("own"))
        return waits

    with ThreadPoolExecutor(1) as pool:
        alone_with(parts_of(whole), lambda: meanwhile(pool)).result()
    assert done == ["other", "own", "other"]
    assert not works_alone()


def test_who_waits_for_ever_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "LIMIT_S", 0.01)
    parts = parts_of(module())
    with ThreadPoolExecutor(1) as pool:
        asked = alone_with(parts, lambda: pool.submit(alone_with, parts, works_alone).exception())
    assert isinstance(asked, TraceError)
    assert str(asked).startswith("another thread has traced this module for 0.01 s")


def test_wherever_an_interrupt_comes_others_do_not_wait_for_who_had_it() -> None:
    parts = parts_of(module())
    kept: list[BaseException] = []  # with all that their frames refer to, as an engine that has failed keeps it
    left = 0

    def interrupt(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal left
        if event in ("call", "c_return"):  # where Python looks for signals
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

    while True:
        left = len(kept)
        sys.setprofile(interrupt)
        try:
            alone_with(parts, works_alone)
            break
        except KeyboardInterrupt as error:
            kept.append(error)
        finally:
            sys.setprofile(None)
        assert not works_alone()
        other = threading.Thread(target=alone_with, args=(parts, works_alone), daemon=True)
        other.start()
        other.join(timeout=30)
        assert not other.is_alive()
    assert len(kept) > 5


def test_a_process_that_was_forked_waits_for_no_thread_of_its_parents() -> None:
    whole, ends = module(), threading.Event()
    begun = threading.Event()

    def trace_it() -> None:
        signal.alarm(60)
        trace(whole, {"input": torch.zeros(2, 4)}, {"input": "latent"})

    def work() -> None:
        begun.set()
        ends.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(alone_with, parts_of(whole) | alone.LIBRARIES, work)
        begun.wait()
        try:
            in_a_child(trace_it)
        finally:
            ends.set()
