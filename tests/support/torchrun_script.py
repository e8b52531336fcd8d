"""A script for torchrun with two ranks: meets faults and prints a line of JSON for each.

Argument: ``driver`` to kill this process while an engine runs; ``agent`` to end, after other faults, the agent: the
process that torchrun has started for rank 1; or ``strangers`` to run and end engines, and to say what listens then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from runtime.engine import Engine
from runtime.ranks import torchrun_driver
from tests.support.engines import equal
from tests.support.traces import is_gone, listening, rank_processes
from tests.support.trouble import (
    call_until_it_fails,
    engine_for,
    fragile,
    inputs,
    plan_for,
    soon,
    trajectory,
    wait_until,
)


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def main() -> None:
    denoiser = fragile()
    plan = plan_for(denoiser)

    def sound() -> None:
        with engine_for(denoiser, plan, exact=True) as engine:
            say(fault="none", equal=equal(trajectory(engine), trajectory(denoiser)))

    if sys.argv[1] == "strangers":
        for _ in range(2):
            with engine_for(denoiser, plan, exact=True) as engine:
                begun = listening([os.getpid(), agent(), *rank_processes(agent())])
                said = equal(trajectory(engine), trajectory(denoiser))
                say(equal=said, listening=sorted(begun | listening([os.getpid(), agent(), *rank_processes(agent())])))
        return
    if sys.argv[1] == "driver":
        with engine_for(denoiser, plan) as engine:
            trajectory(engine)
            say(pids=[os.getpid(), agent(), *rank_processes(agent())])
            os.kill(os.getpid(), signal.SIGKILL)
    sound()
    streams(denoiser)
    fault(engine_for(denoiser, plan), lambda rank: os.kill(rank, signal.SIGKILL))
    fault(engine_for(denoiser, plan), lambda rank: os.kill(rank, signal.SIGSTOP))
    sound()
    fault(engine_for(denoiser, plan), lambda _: os.kill(agent(), signal.SIGTERM))
    sys.exit(5)


def streams(denoiser: nn.Module) -> None:
    """Two calls per step, each on a branch of its own."""

    def calls(called: Callable[..., Any]) -> list[torch.Tensor]:
        made = []
        for call in range(6):
            first = inputs(call)
            for context in (first["context"], -inputs(0)["context"]):
                made.append(called(**{**first, "context": context})[0])
        return made

    plan = plan_for(denoiser, 1, branches=2, streams=2, calls_per_step=2)
    with torch.no_grad(), engine_for(denoiser, plan, exact=True) as engine:
        say(fault="none", equal=equal(calls(engine), calls(denoiser)), foreseen=engine.stats.foreseen_calls)


def agent() -> int:
    """The process that torchrun has started for rank 1."""
    assert torchrun_driver._server is not None
    return torchrun_driver._server._agents[1].introduction.pid


def fault(engine: Engine, act: Callable[[int], None]) -> None:
    """Do something to rank 1 and say what comes of it."""
    with engine:
        trajectory(engine)
        (rank,) = rank_processes(agent())
        with soon(lambda: act(rank)) as done:
            error: Any = call_until_it_fails(engine, begin=6)
        seconds = time.monotonic() - done[0]
    wait_until(lambda: is_gone(rank), 20)  # nobody waits for it where its agent has ended
    say(
        error=type(error).__name__,
        rank=error.rank,
        value=getattr(error, "value", None),
        text=str(error),
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
