"""Turns: who comes in the middle of a call, from whichever thread or process, does not wait for ever or harm it."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from runtime.engine import Engine, PlannedDenoiser
from runtime.errors import EngineBusy, EngineClosed, OtherProcess
from runtime.options import EngineOptions
from runtime.ranks.emulated import EmulatedRanks
from runtime.turns import Turns
from runtime.worker.segment import Segment
from tests.support.engines import Trajectory, equal, threads_of_engines, toy_plan
from tests.support.forks import in_a_child
from tests.support.toy_plans import DENOISER
from tests.support.trouble import wait_until

pytestmark = pytest.mark.usefixtures("trace_once")

TRAJECTORY = Trajectory(calls=2)
ASKED: dict[str, Callable[[Engine], Any]] = {
    "a call": lambda engine: engine(**TRAJECTORY.inputs(0)),
    "a call of another denoiser": lambda engine: engine.others["other"](**TRAJECTORY.inputs(0)),
    "stats": lambda engine: engine.stats,
    "timeline": lambda engine: engine.timeline(),
}


def engine_of(transport: str = "emulation", **options: Any) -> Engine:
    plan = toy_plan(DENOISER, 2)
    made = EngineOptions(transport=transport, exact=True, record=True, **options)
    return Engine(DENOISER, plan, made, others={"other": PlannedDenoiser(DENOISER, plan)})


@contextmanager
def in_a_call(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], thread: str = "") -> Iterator[None]:
    """Act once in the middle of a call, in the thread of that name; default: the caller's."""
    before = Segment.__call__
    left = [1]

    def acting(segment: Segment, values: Any) -> Any:
        if left and threading.current_thread().name == (thread or threading.main_thread().name):
            left.clear()
            act()
        return before(segment, values)

    with monkeypatch.context() as patched:
        patched.setattr(Segment, "__call__", acting)
        yield
    assert not left


def by_signal(act: Callable[[], object]) -> Callable[[], None]:
    """Has a signal handler act."""

    def send() -> None:
        before = signal.signal(signal.SIGUSR1, lambda *_: act())
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)

    return send


def by_finalizer(act: Callable[[], object]) -> Callable[[], None]:
    """Has an object's finalizer act, that the garbage collector calls."""

    class Loop:
        pass

    def throw_away() -> None:
        loop = Loop()
        loop.itself = loop  # type: ignore[attr-defined]
        weakref.finalize(loop, act)
        del loop
        gc.collect()

    return throw_away


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("way", [by_signal, by_finalizer])
def test_what_is_asked_in_the_middle_of_a_call_is_refused_and_the_call_goes_on(
    asked: str, way: Callable[[Callable[[], object]], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    with engine_of() as engine:

        def ask() -> None:
            with pytest.raises(EngineBusy) as caught:
                ASKED[asked](engine)
            refused.append(str(caught.value))

        with in_a_call(monkeypatch, way(ask)), torch.no_grad():
            assert equal(TRAJECTORY.through(engine), TRAJECTORY.through(DENOISER))
        assert "in the middle of a call of the same thread" in refused[0]
        assert engine.stats.steps == 2


@pytest.mark.parametrize("way", [by_signal, by_finalizer])
def test_closing_in_the_middle_of_a_call_waits_for_its_end(
    way: Callable[[Callable[[], object]], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("threads")
    with in_a_call(monkeypatch, way(engine.close)), torch.no_grad():
        assert equal(engine(**TRAJECTORY.inputs(0)), DENOISER(**TRAJECTORY.inputs(0)))
    with pytest.raises(EngineClosed):
        engine(**TRAJECTORY.inputs(1))
    wait_until(lambda: not threads_of_engines())


def test_closing_in_a_thread_of_the_engines_own_waits_for_the_calls_end(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("threads")
    with in_a_call(monkeypatch, by_finalizer(engine.close), thread="rank 1"), torch.no_grad():
        assert equal(engine(**TRAJECTORY.inputs(0)), DENOISER(**TRAJECTORY.inputs(0)))
    with pytest.raises(EngineClosed):
        engine(**TRAJECTORY.inputs(1))
    wait_until(lambda: not threads_of_engines())


def test_closing_in_another_thread_waits_for_the_calls_end(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("threads")
    closing = threading.Thread(target=engine.close)
    with in_a_call(monkeypatch, closing.start), torch.no_grad():
        assert equal(engine(**TRAJECTORY.inputs(0)), DENOISER(**TRAJECTORY.inputs(0)))
    closing.join(timeout=10)
    assert not closing.is_alive()
    assert not threads_of_engines()


def test_a_call_that_waits_for_a_thread_that_waits_for_the_call_ends_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused: list[str] = []
    with engine_of(step_timeout_s=0.05, startup_timeout_s=0.05) as engine:

        def ask() -> None:
            with pytest.raises(EngineBusy) as caught:
                engine.close()
            refused.append(str(caught.value))

        def wait_for_another() -> None:
            other = threading.Thread(target=ask)
            other.start()
            other.join()

        with in_a_call(monkeypatch, wait_for_another), torch.no_grad():
            assert equal(engine(**TRAJECTORY.inputs(0)), DENOISER(**TRAJECTORY.inputs(0)))
    assert "has waited 0.1 s for a call of another thread" in refused[0]


def test_threads_that_wait_for_their_turns_wait_as_long_as_turns_are_taken() -> None:
    turns, done = Turns(0.2), []
    waiting = threading.Event()

    def work() -> None:
        waiting.wait(0.1)  # less than the limit, but not for the last of them
        done.append(1)

    threads = [threading.Thread(target=turns.take, args=("work", work)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 8


def test_a_signal_while_the_engine_is_closed_is_handled_when_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, closed = engine_of(), []
    before = EmulatedRanks.close

    def interrupted(ranks: EmulatedRanks) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        before(ranks)
        closed.append(ranks)

    monkeypatch.setattr(EmulatedRanks, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    assert closed == [engine._ranks]
    with pytest.raises(EngineClosed):
        engine(**TRAJECTORY.inputs(0))


# ---- forks


def test_a_forked_process_is_refused_whatever_it_asks_and_the_engine_goes_on() -> None:
    with engine_of() as engine:

        def ask() -> None:
            for act in (*ASKED.values(), Engine.close):
                with pytest.raises(OtherProcess, match=rf"forked from the engine's, process {os.getppid()}:"):
                    act(engine)
            engine.__exit__(None, None, None)

        with torch.no_grad():
            engine(**TRAJECTORY.inputs(0))
            in_a_child(ask)
            engine(**TRAJECTORY.inputs(1))
        assert engine.stats.steps == 2
