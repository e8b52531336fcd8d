"""Measures what an engine's processes hold after so many calls: memory (MiB), descriptors, threads, shared regions.

    python -m tools.measure long-runs [--calls 5000] [--shapes 100] [--contexts 1000] [--at-once 1] [--steps 5]
                                      [--restarts 0] [--transport processes] [--mode async] [--ranks 2] [--record]
                                      [--json]

A small denoiser is called generation by generation, each of ``--steps`` calls, of a shape drawn from ``--shapes`` and
in the next cache context of ``--contexts``; ``--at-once`` generations take turns, call by call. With ``--restarts``
the engine is closed and another one started so many times on the way. Printed is what all of the engine's processes
hold together, at twenty places, after garbage has been collected. The exit code is 1 where there is more at the end
than at a quarter of the calls: of memory by more than a tenth and 16 MiB, of all else by more than a twentieth and 2.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import DDIMScheduler
from torch import nn

from partitioner.plan.plan import Plan
from partitioner.planning.compile import compile
from partitioner.planning.options import PlanOptions
from runtime.devices.memory import give_back
from runtime.engine import Engine
from runtime.options import TRANSPORTS, EngineOptions

WIDTH, PLACES = 16, 20
ROLES = {"x": "latent", "t": "timestep", "context": "prompt"}


class PromptedDenoiser(nn.Module):
    """x: [1, tokens, 16] latent; t: scalar; context: [1, 16] prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.prompt = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor]:
        shift = self.prompt(context)[:, None] + t / 1000
        for layer in self.layers:
            x = x + torch.tanh(layer(x) + shift)
        return (x,)


@dataclass(frozen=True)
class Held:
    """What the processes of an engine hold after so many calls.

    Attributes:
        calls: so far.
        memory_mib: resident memory.
        descriptors: open ones.
        threads: of all kinds.
        shared: mapped regions of memory that processes share.
        graphs, trajectories: that rank 0 keeps.
    """

    calls: int
    memory_mib: float
    descriptors: int
    threads: int
    shared: int
    graphs: int
    trajectories: int


def held(engine: Engine, calls: int) -> Held:
    """What this process and those that it has started hold now."""
    gc.collect()
    give_back()
    own = psutil.Process()
    processes = [own, *own.children(recursive=True)]
    worker = engine._ranks.workers[0]
    return Held(
        calls,
        round(sum(process.memory_info().rss for process in processes) / 2**20, 1),
        sum(process.num_fds() for process in processes),
        sum(process.num_threads() for process in processes),
        sum(Path(f"/proc/{process.pid}/maps").read_text().count("memfd:") for process in processes),
        len(worker._components),
        worker.trajectories_kept,
    )


class PresentScheduler:
    """The scheduler of the loop that makes the present call."""

    scheduler: Any = None


def generation(
    caller: PresentScheduler, engine: Engine, steps: int, tokens: int, context: str, seed: int
) -> Iterator[None]:
    """The calls of one generation, one for each ``next``."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(steps)
    made = torch.Generator().manual_seed(seed)
    latent = torch.randn(1, tokens, WIDTH, generator=made)
    prompt = torch.randn(1, WIDTH, generator=made)
    for timestep in scheduler.timesteps:
        before = engine.in_context(context)
        caller.scheduler = scheduler
        output = engine(x=latent, t=timestep.float(), context=prompt)[0]
        engine.in_context(before)
        latent = scheduler.step(output, timestep, latent).prev_sample
        yield


def measure(options: argparse.Namespace) -> list[Held]:
    """Run the calls; what is held on the way."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    denoiser = PromptedDenoiser().eval()
    example = {"x": torch.zeros(1, 4, WIDTH), "t": torch.tensor(1.0), "context": torch.zeros(1, WIDTH)}
    plan = compile(
        denoiser, example, ROLES, options.ranks, device="cpu",
        options=PlanOptions(branches=1, mode=options.mode, warmup=2, force=True),
    )  # fmt: skip
    caller, rows, pending = PresentScheduler(), list[Held](), _generations(options)
    done, engines = 0, 1 + options.restarts
    for number in range(engines):
        with _engine(denoiser, plan, options, caller) as engine, torch.no_grad():
            turns: list[Iterator[None]] = []
            while done < options.calls * (number + 1) // engines:
                while len(turns) < options.at_once:
                    turns.append(generation(caller, engine, options.steps, *next(pending)))
                turn = turns.pop(0)
                if next(turn, turn) is not turn:
                    turns.append(turn)
                    done += 1
                    if done * PLACES // options.calls > len(rows):
                        rows.append(held(engine, done))
    return rows


def _engine(denoiser: nn.Module, plan: Plan, options: argparse.Namespace, caller: PresentScheduler) -> Engine:
    made = EngineOptions(transport=options.transport, quality="off", record=options.record)
    return Engine(denoiser, plan, made, scheduler=lambda: caller.scheduler)


def _generations(options: argparse.Namespace) -> Iterator[tuple[int, str, int]]:
    """Shape, context and seed of each generation in turn."""
    drawn = random.Random(0)
    number = 0
    while True:
        yield 4 + drawn.randrange(options.shapes), f"request {number % options.contexts}", number
        number += 1


def table(rows: Sequence[Held]) -> str:
    """The rows as text."""
    names = list(asdict(rows[0]))
    lines = [names, *([f"{value:g}" for value in asdict(row).values()] for row in rows)]
    return "\n".join("  ".join(f"{cell:>12}" for cell in line) for line in lines)


def growth(rows: Sequence[Held]) -> dict[str, tuple[float, float]]:
    """By kind, what was held at a quarter of the calls and at the end, where that is more than it may be."""
    found = {}
    for kind in ("memory_mib", "descriptors", "threads", "shared", "graphs", "trajectories"):
        first, last = (float(getattr(rows[place], kind)) for place in (len(rows) // 4, -1))
        room = max(16.0, first / 10) if kind == "memory_mib" else max(2.0, first / 20)
        if last > first + room:
            found[kind] = first, last
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 1 where something has grown."""
    made = argparse.ArgumentParser(prog="python -m tools.measure long_runs", description=__doc__.split("\n")[0])
    made.add_argument("--calls", type=int, default=5000, metavar="N", help="in all (default: 5000)")
    made.add_argument("--shapes", type=int, default=100, metavar="N", help="(default: 100)")
    made.add_argument("--contexts", type=int, default=1000, metavar="N", help="(default: 1000)")
    made.add_argument("--at-once", type=int, default=1, metavar="N", help="generations that take turns (default: 1)")
    made.add_argument("--steps", type=int, default=5, metavar="N", help="calls of a generation (default: 5)")
    made.add_argument("--restarts", type=int, default=0, metavar="N", help="of the engine (default: 0)")
    made.add_argument("--ranks", type=int, default=2, metavar="N", help="(default: 2)")
    made.add_argument("--transport", choices=TRANSPORTS, default="processes")
    made.add_argument("--mode", choices=("async", "lookahead"), default="async")
    made.add_argument("--record", action="store_true", help="with EngineOptions.record")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    options = made.parse_args(argv)
    if (
        options.calls < PLACES
        or min(options.shapes, options.contexts, options.at_once, options.steps, options.ranks) < 1
    ):
        made.error(f"expected at least {PLACES} calls, and 1 of all else")
    rows = measure(options)
    grown = growth(rows)
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "grown": grown}, indent=1))
    else:
        print(table(rows))
        for kind, (first, last) in grown.items():
            print(f"{kind} has grown from {first:g} to {last:g}")
    return 1 if grown else 0
