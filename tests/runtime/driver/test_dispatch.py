"""Dispatcher: which commands a rank gets, call by call; what they compute is in test_engine_reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.worker.commands import Evaluate
from tests.support.engines import Trajectory, toy_plan
from tests.support.schedulers import DETERMINISTIC, scheduler_of
from tests.support.toy_plans import DENOISER

pytestmark = pytest.mark.usefixtures("trace_once")


def commands(monkeypatch: pytest.MonkeyPatch, calls: int, **options: Any) -> list[Evaluate]:
    """What rank 1, which has component 0 of 2, is told in a trajectory with 2 exact calls."""
    told: list[Evaluate] = []
    with Engine(DENOISER, toy_plan(DENOISER, 2), EngineOptions(transport="emulation", **options)) as engine:
        command = engine._ranks.command

        def remembered(rank: int, what: Any) -> None:
            if isinstance(what.command, Evaluate):
                told.append(what.command)
            command(rank, what)

        monkeypatch.setattr(engine._ranks, "command", remembered)
        Trajectory(calls=calls).through(engine)
    return told


def test_async_calls_read_the_call_before_and_hear_of_each_message_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = commands(monkeypatch, calls=4)
    assert [command.step for command in told] == [0, 1, 2, 3]
    assert [command.reads for command in told] == [(0, 0), (1, 1), (1, 1), (2, 2)]
    heard = [step for command in told for step in command.arrivals[1]]
    assert heard == sorted(set(heard))
    assert [command.start for command in told] == [0, None, None, None]
    assert [bool(command.fresh) for command in told] == [True, False, False, False], "prompts are sent once"


def test_exact_calls_read_their_own_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    told = commands(monkeypatch, calls=3, exact=True)
    assert [command.reads for command in told] == [(0, 0), (1, 1), (2, 2)]
    assert not any(command.observe or command.arrivals for command in told)


def test_microbatches_have_contexts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told = commands(monkeypatch, calls=3, microbatches=2)
    # the 2 exact calls in 2 parts each, joined for the async call that reads them
    assert [(command.context, command.step) for command in told] == [(1, 0), (2, 0), (1, 1), (2, 1), (0, 2)]
    assert [command.join.part if command.join else None for command in told] == [0, 1, 0, 1, None]


def test_ranks_are_given_copies_of_what_the_caller_has_and_predictions_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller may write to its latent while a rank still reads; what was predicted nobody writes to."""
    given: list[torch.Tensor] = []
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 6)
    options = EngineOptions(transport="emulation", mode="lookahead", quality="off")
    with Engine(DENOISER, toy_plan(DENOISER, 2), options, scheduler=lambda: scheduler) as engine, torch.no_grad():
        mailbox = engine._ranks.workers[0].mailbox
        send = mailbox.send

        def remembered(readers: Any, key: Any, tensor: torch.Tensor) -> None:
            given.append(tensor)
            send(readers, key, tensor)

        monkeypatch.setattr(mailbox, "send", remembered)
        latent, context = torch.randn(2, 5, 8), torch.randn(2, 6)
        for timestep in scheduler.timesteps[:4]:
            given.clear()
            (output,) = engine(x=latent, t=timestep, context=context)
            assert not any(tensor.data_ptr() == latent.data_ptr() for tensor in given)
            (stream,) = engine._first._streams._open
            predicted = [each.data_ptr() for each in stream.trajectory._known._forecasts["x"]._predicted.values()]
            latent = scheduler.step(output, timestep, latent)[0]
        assert any(tensor.data_ptr() in predicted for tensor in given)
