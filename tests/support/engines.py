"""A small denoiser of no library, plans for any placement of it, and a naive reference of what the engine computes."""

from __future__ import annotations

import copy
import math
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Ref, Role, Symbol
from partitioner.graph.operators import lowered
from partitioner.plan.plan import Plan
from partitioner.plan.records import CostSource, Predicted, PredictedComponent
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.turns import EngineThread
from runtime.worker.predictor import PREDICTORS, Hold, Predictor
from tools.trace_once import Traces

ROLES = {"x": "latent", "t": "timestep", "context": "prompt"}
WIDTH = 8


class Block(nn.Module):
    """Modulated by the timestep, conditioned by the prompt; ``skip`` comes from far up the chain."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(WIDTH, WIDTH)
        self.condition = nn.Linear(WIDTH, WIDTH, bias=False)
        self.write = nn.Linear(2 * WIDTH, WIDTH)

    def forward(
        self, hidden: torch.Tensor, time: torch.Tensor, context: torch.Tensor, skip: torch.Tensor
    ) -> torch.Tensor:
        inner = torch.tanh(self.read(hidden) * (1 + time)) + self.condition(context)[:, None]
        return hidden + self.write(torch.cat([inner, skip], dim=-1))


class ToyDenoiser(nn.Module):
    """x: [rows, 5, 8] latent; t: scalar; context: [rows, 6] prompt. Down blocks feed up blocks by skips."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, WIDTH)
        self.prompt = nn.Linear(6, WIDTH)
        self.down = nn.ModuleList(Block() for _ in range(3))
        self.up = nn.ModuleList(Block() for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, t: torch.Tensor | float, context: torch.Tensor, gain: float = 1.0) -> Any:
        time = nn.functional.silu(self.time(torch.as_tensor(t, dtype=x.dtype).reshape(1, 1) / 1000))
        shared = self.prompt(context)
        skips, hidden = [], x * gain
        for block in self.down:
            hidden = block(hidden, time, shared, hidden)
            skips.append(hidden)
        for block in self.up:
            hidden = block(hidden, time, shared, skips.pop())
        return (self.out(hidden),)


TRACES = Traces()


def toy() -> ToyDenoiser:
    """The toy denoiser with the weights of seed 0."""
    torch.manual_seed(0)
    return ToyDenoiser().eval()


def toy_graph(denoiser: nn.Module, rows: int = 2) -> TracedGraph:
    """The toy denoiser, traced once for all tests."""
    example = {"x": torch.zeros(rows, 5, WIDTH), "t": torch.zeros(()), "context": torch.zeros(rows, 6)}
    return TRACES.trace(denoiser, example, ROLES, model="toy")


def toy_module() -> tuple[fx.GraphModule, list[torch.Tensor], torch.Tensor]:
    """All nodes of the toy denoiser, lowered; what they read in a call; and the denoiser's own output of it."""
    denoiser, inputs = toy(), Trajectory().inputs(0)
    graph = toy_graph(denoiser)
    parameters = dict(denoiser.named_parameters())
    reads = [item.name for item in graph.inputs] + [item.name for item in graph.parameters]
    values = [inputs[item.name] for item in graph.inputs] + [parameters[item.path] for item in graph.parameters]
    with torch.no_grad():
        expected = denoiser(**inputs)[0]
    return lowered(graph.nodes, reads, graph.result_values, torch.device("cpu")), values, expected


def contiguous(graph: TracedGraph, components: int) -> dict[str, int]:
    """Latent node name -> component: runs of equal length."""
    nodes = graph.latent_nodes
    return {node.name: min(components - 1, i * components // len(nodes)) for i, node in enumerate(nodes)}


def folded(graph: TracedGraph, components: int = 2) -> dict[str, int]:
    """The last component has the first and the last quarter of the nodes, the others share the middle."""
    nodes = graph.latent_nodes
    quarter = len(nodes) // 4
    placed = {node.name: components - 1 for node in nodes}
    inner = nodes[quarter : len(nodes) - quarter]
    placed.update({node.name: i * (components - 1) // len(inner) for i, node in enumerate(inner)})
    return placed


def plan_of(
    graph: TracedGraph, placement: Mapping[str, int], *, branches: int = 1, mode: str = "async", **options: Any
) -> Plan:
    """A plan of a placement; its predicted figures are zeros."""
    components = max(placement.values()) + 1
    ranks = components * branches
    nothing = PredictedComponent(
        compute_ms=0, macs=0, parameters=0, parameter_bytes=0, memory_bytes=0, receive_bytes=0, send_bytes=0
    )
    predicted = Predicted(
        sequential_ms=0, step_ms=0, exact_step_ms=0, lower_bound_ms=0, gap=0, speedup_step=0, bytes_per_step=0,
        staleness=0, macs=0, components=(nothing,) * ranks,
    )  # fmt: skip
    return Plan.from_split(
        graph,
        placement,
        components=components,
        branches=branches,
        devices=["cpu"] * ranks,
        predicted=predicted,
        cost_source=CostSource(kind="roofline", device="cpu", covered=0),
        versions={"torch": torch.__version__.split("+")[0]},
        mode=mode,  # type: ignore[arg-type]
        **options,
    )


def toy_plan(
    denoiser: nn.Module,
    components: int = 2,
    *,
    branches: int = 1,
    streams: int = 1,
    placed: Callable[[TracedGraph, int], dict[str, int]] = contiguous,
    **options: Any,
) -> Plan:
    """A plan of the toy denoiser for calls of 2 rows."""
    graph = toy_graph(denoiser, rows=2 * streams // branches)
    options = {"warmup": 2, "streams": streams, "calls_per_step": streams, **options}
    return plan_of(graph, placed(graph, components), branches=branches, **options)


class Trajectory:
    """Inputs of successive toy calls: a latent that drifts and wobbles, a falling timestep, one prompt."""

    def __init__(self, calls: int = 7, rows: int = 2, seed: int = 0) -> None:
        made = torch.Generator().manual_seed(seed)
        start, drift, wobble = (torch.randn(rows, 5, WIDTH, generator=made) for _ in range(3))
        self.latents = [start + 0.1 * call * drift + 0.03 * math.cos(call) * wobble for call in range(calls)]
        self.timesteps: list[Any] = [torch.tensor(900.0 - 100 * call) for call in range(calls)]
        self.context = torch.randn(rows, 6, generator=made)

    def __len__(self) -> int:
        return len(self.latents)

    def inputs(self, call: int) -> dict[str, Any]:
        """The arguments of one call."""
        return {"x": self.latents[call], "t": self.timesteps[call], "context": self.context}

    def through(self, denoiser: Callable[..., Any]) -> list[torch.Tensor]:
        """What each call returns."""
        with torch.no_grad():
            return [denoiser(**self.inputs(call))[0] for call in range(len(self))]

    def halves(self, count: int) -> list[Trajectory]:
        """The trajectories of each branch."""
        made = [copy.copy(self) for _ in range(count)]
        for index, half in enumerate(made):
            half.latents = [latent.chunk(count)[index] for latent in self.latents]
            half.context = self.context.chunk(count)[index]
        return made


def run(denoiser: nn.Module, plan: Plan, trajectory: Trajectory, **options: Any) -> list[torch.Tensor]:
    """One trajectory through an engine of its own."""
    with Engine(denoiser, plan, EngineOptions(**{"transport": "emulation", **options})) as engine:
        return trajectory.through(engine)


def equal(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    """Bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def largest_difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def reference(
    denoiser: nn.Module,
    graph: TracedGraph,
    placement: Mapping[str, int],
    trajectory: Trajectory,
    *,
    warmup: int,
    predictor: str = "hold",
    periods: Sequence[int] | None = None,
) -> list[torch.Tensor]:
    """Async mode in the plainest way: node by node, one table of values per component, nothing of the engine.

    At an exact call a component reads what the others compute in this call; later, what a predictor makes of what
    they computed in earlier ones. A component of period p computes every p calls, and what it starts takes p calls.
    """
    components = max(placement.values()) + 1
    periods = periods or (1,) * components
    state = {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}
    parameters = {p.name: state[p.path].detach() for p in graph.parameters}
    sent: dict[str, list[tuple[int, torch.Tensor]]] = {node.name: [] for node in graph.latent_nodes}
    outputs = []
    with torch.no_grad():
        for call in range(len(trajectory)):
            exact = call < warmup
            inputs = trajectory.inputs(call)
            known: dict[str, Any] = {**parameters, **{i.name: inputs[i.name] for i in graph.inputs}}
            estimates: dict[str, torch.Tensor] = {}
            for node in graph.nodes:
                if node.role is Role.LATENT and not (exact or (call - warmup) % periods[placement[node.name]] == 0):
                    continue
                values = dict(known)
                for name in node.reads:
                    source = placement.get(name)
                    if not exact and source is not None and source != placement[node.name]:
                        if name not in estimates:
                            estimates[name] = _estimate(sent[name], call, warmup, periods[source], predictor)
                        values[name] = estimates[name]
                known[node.name] = _call(node.target, node.args, dict(node.kwargs), values)
                if node.role is Role.LATENT and isinstance(known[node.name], torch.Tensor):
                    sent[node.name].append((call, known[node.name]))
            outputs.append(known[graph.result_values[0]])
    return outputs


def _estimate(
    sent: Sequence[tuple[int, torch.Tensor]], call: int, warmup: int, period: int, predictor: str
) -> torch.Tensor:
    made: Predictor = PREDICTORS[predictor]() if sent[0][1].is_floating_point() else Hold()
    for step, tensor in sent:
        if step < call and (step < warmup or step + period <= call):
            made.observe(step, tensor)
    return made.estimate(call)


def _call(target: str, args: Any, kwargs: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    def concrete(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return values[argument.name]
        if isinstance(argument, Symbol):
            return torch.device("cpu") if argument.kind == "device" else getattr(torch, argument.value)
        return [concrete(item) for item in argument] if isinstance(argument, tuple) else argument

    function: Any = operator.getitem
    if target != "operator.getitem":
        function = torch.ops
        for part in target.split("."):
            function = getattr(function, part)
    return function(*map(concrete, args), **{key: concrete(value) for key, value in kwargs.items()})


def threads_of_engines() -> list[str]:
    """The names of the threads that engines have started in this process and that run."""
    return [thread.name for thread in threading.enumerate() if isinstance(thread, EngineThread)]
