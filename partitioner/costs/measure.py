"""measure: run each distinct operator call of a graph on random tensors and time it; no model weights are needed.

CPU: the calls take turns. A round runs every distinct call once, in the order of the graph, so that weights come from
memory and code from cold caches as in a real step, while the activations that a call reads are touched just before,
as if just computed. Repeating one call in a loop instead keeps its weights in the cache and makes the sum of a
denoiser's nodes some 10 % too small; flushing all caches makes it up to 30 % too large. Calls during which another
thread had the core do not count, where there are enough others.

            call 1   call 2   call 3   ...
    round 1   *        *        *           warms nothing up: that was done before
    round 2   *        *        *
    ...                                     MIN_ROUNDS rounds; up to MAX_ROUNDS for calls below SLOW_MS

GPU: a call is repeated on copies of its parameters that together exceed the L2 cache. "eager" times calls that the host
enqueues one after the other, so the longer of kernel and launch counts; "cuda_graph" replays them captured, so kernels
alone count, and so does "compiled". All note the host's time per launch.

"compiled": every operator is what torch.compile makes of it alone, less what calling any compiled function takes. That
operators fuse is not seen in it, so the sum lies above the whole, more so the more elementwise operators there are.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from partitioner.costs.device_description import clock_mhz, device_name, versions
from partitioner.costs.operator_calls import compiled_node, first_run, make_call
from partitioner.costs.random_tensors import extent
from partitioner.costs.signature import signature
from partitioner.costs.timing import (
    MIN_ROUNDS,
    Sample,
    TimingMode,
    cpu_call,
    measuring_device,
    quietest,
    steady_cpu,
    summarise,
    time_gpu_calls,
)
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node
from partitioner.graph.operator_classes import is_free, value_metas
from profiles.cost_profile import SCHEMA_VERSION, CostProfile, SignatureCost

CallsDone = Callable[[int, int], None]

MAX_ROUNDS = 15  # of calls below SLOW_MS; a slow call's spread is small
SLOW_MS = 50.0
BATCH_BYTES = 2 << 30  # tensors held at once while calls take turns; many times the cache


def measure(
    graph: TracedGraph,
    device: str = "cpu",
    *,
    mode: TimingMode = "eager",
    command: str = "",
    progress: CallsDone | None = None,
) -> CostProfile:
    """Time every distinct signature of a graph on a device: median and inter-quartile range of at least 5 calls.

    Args:
        graph: The graph; its weights are not needed.
        device: "cpu" (one thread) or a GPU such as "cuda:0".
        mode: How calls are made; "cuda_graph" needs a GPU, "compiled" on a CPU a C++ compiler.
        command: What the profile notes as its origin.
        progress: Called with (signatures done, signatures in all).

    Raises:
        MeasureError: The device is not there, or does not support one of the operators.

    >>> import torch
    >>> from partitioner import trace
    >>> graph = trace(torch.nn.Linear(8, 8).eval(), {"input": torch.zeros(2, 8)}, {"input": "latent"})
    >>> list(measure(graph).signatures)
    ['aten.linear.default(float32[2,8], float32[8,8], float32[8])']
    """
    target = measuring_device(device, mode)
    calls = distinct_calls(graph, mode)
    report = progress or (lambda done, total: None)
    with torch.inference_mode(), steady_cpu():
        if target.type == "cpu":
            costs = _measure_cpu(graph, calls, mode, report)
        else:
            costs = _measure_cuda(graph, calls, target, mode, report)
    return CostProfile(
        schema_version=SCHEMA_VERSION,
        device="cpu" if target.type == "cpu" else "cuda",
        device_name=device_name(target),
        clock_mhz=clock_mhz(target),
        versions=versions(target),
        dtype=_dtype(graph),
        mode=mode,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        signatures=costs,
    )


def distinct_calls(graph: TracedGraph, mode: TimingMode) -> dict[str, Node]:
    """signature -> the first node that has it, in the order of the graph; without what costs nothing in that mode."""
    calls: dict[str, Node] = {}
    for node in graph.nodes:
        if not is_free(graph, node, mode):
            calls.setdefault(signature(graph, node), node)
    return calls


def _measure_cpu(
    graph: TracedGraph, calls: Mapping[str, Node], mode: TimingMode, report: CallsDone
) -> dict[str, SignatureCost]:
    device = torch.device("cpu")
    launch_ms = _compiled_call_ms() if mode == "compiled" else 0.0
    costs: dict[str, SignatureCost] = {}
    for batch in _batches(graph, calls):
        made = {
            text: make_call(graph, node, device, {}, compiled_node(node, device) if mode == "compiled" else None)
            for text, node in batch
        }
        samples: dict[str, list[Sample]] = {text: [] for text in made}
        for call in made.values():
            first_run(call, device)
        for number in range(MAX_ROUNDS):
            for text, call in made.items():
                if number < MIN_ROUNDS or samples[text][0].ms < SLOW_MS:
                    call.touch()
                    samples[text].append(cpu_call(call.run))
        for text, found in samples.items():
            costs[text] = summarise([max(ms - launch_ms, 0.0) for ms in quietest(found, MIN_ROUNDS)], launch_ms)
        report(len(costs), len(calls))
    return costs


def _compiled_call_ms() -> float:
    """Time in ms of calling a compiled function that computes next to nothing."""
    add = torch.compile(lambda tensor: tensor + 1, dynamic=False)
    one = torch.ones(1)
    for _ in range(3):
        add(one)
    return statistics.median(cpu_call(lambda: add(one)).ms for _ in range(101))


def _measure_cuda(
    graph: TracedGraph, calls: Mapping[str, Node], device: torch.device, mode: TimingMode, report: CallsDone
) -> dict[str, SignatureCost]:
    cache_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
    costs: dict[str, SignatureCost] = {}
    with torch.cuda.device(device):
        for done, (text, node) in enumerate(calls.items(), 1):
            copies = _copies_beyond_cache(graph, node, cache_bytes)
            fresh: dict[str, Any] = {}  # the copies share what a step has just computed
            compiled = compiled_node(node, device) if mode == "compiled" else None
            made = [make_call(graph, node, device, fresh, compiled) for _ in range(copies)]
            for call in made:
                first_run(call, device)
            costs[text] = time_gpu_calls(made, mode)
            report(done, len(calls))
    return costs


def _batches(graph: TracedGraph, calls: Mapping[str, Node]) -> Iterator[list[tuple[str, Node]]]:
    """The calls in order, in runs whose tensors fit BATCH_BYTES together (or of one call)."""
    batch: list[tuple[str, Node]] = []
    held = 0
    for text, node in calls.items():
        size = sum(4 * extent(meta) for name in node.reads for meta in value_metas(graph, name))
        if batch and held + size > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append((text, node))
        held += size
    if batch:
        yield batch


def _copies_beyond_cache(graph: TracedGraph, node: Node, cache_bytes: int) -> int:
    """How many sets of its parameters exceed twice the cache: 1 to 16, and 1 where it reads none."""
    size = sum(graph.parameter_by_name[name].meta.size_bytes for name in node.reads if name in graph.parameter_by_name)
    return 1 if size == 0 else min(16, math.ceil(2 * cache_bytes / size) + 1)


def _dtype(graph: TracedGraph) -> str:
    """The dtype that most parameter elements have; float32 without parameters."""
    count: dict[str, int] = {}
    for parameter in graph.parameters:
        count[parameter.meta.dtype] = count.get(parameter.meta.dtype, 0) + parameter.meta.numel
    return max(count, key=lambda dtype: count[dtype], default="float32")
