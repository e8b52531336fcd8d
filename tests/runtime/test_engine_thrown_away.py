"""Engines that nobody closes end when nobody has them any more, wherever that is noticed."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.worker.segment import Segment
from tests.support.engines import Trajectory, equal, threads_of_engines, toy, toy_plan
from tests.support.toy_plans import DENOISER
from tests.support.trouble import wait_until

TRAJECTORY = Trajectory(calls=1)


def used(denoiser: nn.Module, transport: str = "threads") -> Engine:
    """An engine that has made a call. Before Python 3.13 who makes one keeps its locals until it returns."""
    engine = Engine(denoiser, toy_plan(DENOISER, 2), EngineOptions(transport=transport))
    engine(**TRAJECTORY.inputs(0))
    return engine


def in_a_cycle(engine: Engine) -> None:
    engine.itself = engine  # type: ignore[attr-defined]


def of_its_denoiser(engine: Engine) -> None:
    engine._first.denoiser.register_forward_hook(lambda *_: engine.stats)


@pytest.mark.parametrize("kept_by", [in_a_cycle, of_its_denoiser])
def test_an_engine_that_is_thrown_away_ends(kept_by: Callable[[Engine], None]) -> None:
    lost = [used(toy())]
    kept_by(lost[0])
    gone = weakref.ref(lost[0])
    assert threads_of_engines() == ["rank 1"]
    with pytest.warns(ResourceWarning, match="thrown away without having been closed"):
        collect(lost)
    assert gone() is None
    assert not threads_of_engines()


def has_thread(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


def collect(lost: list[Engine]) -> None:
    lost.clear()
    gc.collect()


@pytest.mark.usefixtures("trace_once")
def test_an_engine_that_is_thrown_away_in_the_middle_of_anothers_call_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = [used(toy())]
    before = Segment.__call__

    def losing(segment: Segment, values: object) -> object:
        lost.clear()
        return before(segment, values)

    def called(engine: Engine) -> None:
        with torch.no_grad():
            assert equal(TRAJECTORY.through(engine), TRAJECTORY.through(DENOISER))
        wait_until(lambda: not threads_of_engines() and not has_thread("end engine"))  # which warns at its end

    with used(DENOISER, "emulation") as engine:
        monkeypatch.setattr(Segment, "__call__", losing)
        with pytest.warns(ResourceWarning, match="thrown away without having been closed"):
            called(engine)


@pytest.mark.usefixtures("trace_once")
def test_an_engine_that_was_closed_is_thrown_away_in_silence(recwarn: pytest.WarningsRecorder) -> None:
    with used(toy()):
        pass
    gc.collect()
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]
