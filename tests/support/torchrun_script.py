"""A script for torchrun with two ranks: meets faults and prints a line of JSON for each.

Argument: ``driver`` to kill this process while an engine runs; ``agent`` to end, after other faults, the agent: the
process that torchrun has started for rank 1; ``strangers`` to run and end engines, and to say what listens then;
``apart`` for faults of ranks whose machines say that they are two; ``two each`` for four ranks on two such machines;
or ``blind`` for ranks of one machine that do not find each other.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from runtime.engine import Engine
from runtime.ranks import torchrun_agent, torchrun_driver
from runtime.ranks.launch import start_process
from runtime.torchrun import join
from runtime.transport import neighbours
from tests.support import rank_elsewhere
from tests.support.engines import equal
from tests.support.rank_elsewhere import ELSEWHERE
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
    if sys.argv[1] in ("apart", "two each"):
        be_elsewhere(also_rank_1=sys.argv[1] == "two each")
        join()
    denoiser = fragile()
    plan = plan_for(denoiser, 4 if sys.argv[1] == "two each" else 2)

    def sound() -> None:
        with engine_for(denoiser, plan, exact=True) as engine:
            box: Any = engine._ranks._mailbox  # type: ignore[attr-defined]
            far = getattr(box, "_peers", None) or getattr(box, "_far", None)
            say(
                fault="none",
                equal=equal(trajectory(engine), trajectory(denoiser)),
                near=sorted(getattr(box, "_channels", ())),
                far=sorted(far._channels) if far is not None else [],
            )

    if sys.argv[1] == "blind":
        neighbours.new_file = refused
        sound()
        return
    if sys.argv[1] == "two each":
        sound()
        fault(engine_for(denoiser, plan), lambda rank: os.kill(rank, signal.SIGKILL), rank=3)
        return
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
    if sys.argv[1] == "agent":
        streams(denoiser)
    fault(engine_for(denoiser, plan), lambda rank: os.kill(rank, signal.SIGKILL))
    fault(engine_for(denoiser, plan), lambda rank: os.kill(rank, signal.SIGSTOP))
    sound()
    if sys.argv[1] == "apart":
        return
    fault(engine_for(denoiser, plan), lambda _: os.kill(agent(), signal.SIGTERM))
    sys.exit(5)


def be_elsewhere(also_rank_1: bool) -> None:
    """Have the driver say that it is on another machine than it is; and rank 1, too."""
    neighbours.boot_id = lambda: ELSEWHERE
    if also_rank_1 and os.environ["RANK"] == "1":
        torchrun_agent.start_process = partial(start_process, module=rank_elsewhere.__name__)


def refused(*_: object) -> int:
    raise OSError("no files of that kind")


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


def agent(rank: int = 1) -> int:
    """The process that torchrun has started for a rank."""
    assert torchrun_driver._server is not None
    return torchrun_driver._server._agents[rank].introduction.pid


def fault(engine: Engine, act: Callable[[int], None], rank: int = 1) -> None:
    """Do something to a rank's process and say what comes of it."""
    with engine:
        trajectory(engine)
        (process,) = rank_processes(agent(rank))
        with soon(lambda: act(process)) as done:
            error: Any = call_until_it_fails(engine, begin=6)
        seconds = time.monotonic() - done[0]
    wait_until(lambda: is_gone(process), 20)  # nobody waits for it where its agent has ended
    say(
        error=type(error).__name__,
        rank=error.rank,
        value=getattr(error, "value", None),
        text=str(error),
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
