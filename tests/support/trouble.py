"""A denoiser that its inputs can bring into trouble, and engines of processes that run it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.plan.plan import Plan
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import plan_of

DEADLINE_S = 5.0
ROLES = {"x": "latent", "t": "timestep", "context": "prompt"}
ROWS, WIDTH, WORDS = 2, 8, 16
HUGE = 2**40  # elements, 4 bytes each; what a plan allows at most


class Fragile(nn.Module):
    """x: [2, 5, 8]; t: scalar; context: [2, 8]. Good inputs have x[..., 0] in [0, 16) and x[..., 1] above 0.

    ``memory``: take more of it than there is.
    """

    def __init__(self, memory: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, WIDTH)
        self.memory = memory

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor]:
        hidden = torch.tanh(self.first(x)) + self.words(x[..., 0].long()) * x[..., 1:2].log()
        hidden = torch.tanh(self.middle(hidden) * (1 + t / 1000) + context[:, None])
        if self.memory:
            hidden = hidden + hidden.new_zeros(HUGE)[0]
        return (self.last(hidden) + hidden,)


def fragile(memory: bool = False) -> Fragile:
    """The denoiser with the weights of seed 0."""
    torch.manual_seed(0)
    return Fragile(memory).eval()


def graph_of(denoiser: nn.Module) -> TracedGraph:
    return trace(denoiser, inputs(0), ROLES, model="fragile")


def cut(graph: TracedGraph, components: int) -> dict[str, int]:
    """The first linear layer and the words are component 0's, the last layer the last one's."""
    count = len(graph.latent_nodes)
    placed = {}
    for index, node in enumerate(graph.latent_nodes):
        if "last" in node.key:
            placed[node.name] = components - 1
        elif "first" in node.key or "words" in node.key:
            placed[node.name] = 0
        else:
            placed[node.name] = min(components - 1, index * components // count)
    return placed


def plan_for(denoiser: nn.Module, components: int = 2, **options: Any) -> Plan:
    graph = graph_of(denoiser)
    return plan_of(graph, cut(graph, components), **{"warmup": 2, **options})


def inputs(call: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Good arguments of a trajectory's call."""
    made = torch.Generator().manual_seed(seed)
    x, drift = (torch.rand(ROWS, 5, WIDTH, generator=made) + 0.5 for _ in range(2))
    context = torch.randn(ROWS, WIDTH, generator=made)
    return {"x": x + 0.01 * call * drift, "t": torch.tensor(900.0 - call), "context": context}


def trajectory(engine: Callable[..., Any], calls: int = 6, seed: int = 0) -> list[torch.Tensor]:
    """What each call of a trajectory returns."""
    with torch.no_grad():
        return [engine(**inputs(call, seed))[0] for call in range(calls)]


def engine_for(denoiser: nn.Module, plan: Plan, **options: Any) -> Engine:
    """An engine of processes with the suite's deadline."""
    return Engine(denoiser, plan, EngineOptions(**{"step_timeout_s": DEADLINE_S, **options}))


def call_until_it_fails(engine: Engine, calls: int = 100_000, begin: int = 0) -> Exception:
    """Go on with a trajectory until a call raises; returns what it raised."""
    context = inputs(0)["context"]
    for call in range(begin, calls):
        try:
            engine(**{**inputs(call), "context": context})
        except Exception as error:
            return error
    raise AssertionError("no call failed")


def twice(engine: Engine, arguments: dict[str, torch.Tensor]) -> None:
    """Two calls: in async mode the driver misses in the second what a rank failed to compute in the first."""
    for _ in range(2):
        engine(**arguments)


@contextmanager
def soon(action: Callable[[], None], after_s: float = 0.2) -> Iterator[list[float]]:
    """Do something from another thread in a moment; the list then holds when it was done."""
    done: list[float] = []

    def act() -> None:
        time.sleep(after_s)
        done.append(time.monotonic())
        action()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield done
    finally:
        thread.join()


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait until something holds; fails where it never does."""
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)
