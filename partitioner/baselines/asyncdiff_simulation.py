"""simulate_asyncdiff: what AsyncDiff's own code does (arXiv 2406.06911, github.com/czg1225/AsyncDiff), played. Pure.

Legend: N components, stride S of 1 or 2, N + S - 1 ranks. Every rank runs the whole pipeline. In a warm-up call each
computes the whole denoiser. Afterwards a rank computes the modules of its own component and takes the outputs of all
others from the last broadcasts; what is outside of these modules (concatenations, the time embedding) runs everywhere.

Stride 1: a call broadcasts the outputs of all modules, one after the other, computes, and broadcasts the result.
Stride 2: two calls make a round. In the first, ranks 0..N-1 compute for the second call's timestep, rank N computes
the last component for the first call's, and broadcasts that result; the second call broadcasts the outputs of all
modules and computes none of them: its result is the last component's, made a call ago.
Each broadcast blocks the device of every rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from partitioner.baselines.asyncdiff_split import broadcast_sizes
from partitioner.graph.ir import TracedGraph
from partitioner.graph.modules import enclosing_modules
from partitioner.graph.nodes import Role
from partitioner.simulator.actions import Action, Broadcast, EndCall, HostWork, Work, work
from partitioner.simulator.machine import Machine
from partitioner.simulator.play import play
from partitioner.simulator.simulate import Simulation, summarise


def simulate_asyncdiff(
    graph: TracedGraph,
    modules: Sequence[Sequence[str]],
    costs_ms: Mapping[str, float],
    machine: Machine,
    *,
    calls: int,
    stride: int = 1,
    warmup: int = 1,
) -> Simulation:
    """Play AsyncDiff's code for its modules by component. machine: of N + stride - 1 equal devices.

    In the steady state a call is half of a round of stride 2. ValueError for another number of ranks.
    """
    components = len(modules)
    if stride not in (1, 2) or machine.ranks != components + stride - 1:
        raise ValueError(f"{components} components need {components} ranks with stride 1, one more with 2")
    own, everywhere = _work_by_component(graph, modules, costs_ms, machine.launch_ms)
    whole = work("denoiser", [costs_ms[n.name] for n in graph.nodes if n.role > Role.CONSTANT], machine.launch_ms)
    root = {module: k for k, names in enumerate(modules) for module in names}
    outputs = broadcast_sizes(graph, modules)
    result_bytes = sum(graph.node_by_name[name].meta.size_bytes for name in graph.result_values)

    scripts: list[list[Action]] = [[] for _ in range(machine.ranks)]
    for call in range(calls):
        opens = (call - 1) % stride == 0  # whether components are computed in this call
        closes = (call - 1) % stride == stride - 1  # whether modules' outputs are broadcast in it
        for rank, script in enumerate(scripts):
            if call < warmup:
                script.append(whole)
            else:
                if closes:
                    script += [Broadcast((call, name), name, size, root[name]) for name, size in outputs.items()]
                script.append(everywhere)
                if opens:
                    script.append(own[min(rank, components - 1)])
                    script.append(Broadcast((call, ""), "result", result_bytes, machine.ranks - 1))
            script.append(HostWork("scheduler", machine.driver_ms))
        scripts[0].append(EndCall(call))
    timeline = play(machine, scripts)
    last = calls - (calls - warmup) % stride
    length = max((last - warmup) // 2 // stride * stride, min(stride, last - warmup))
    return summarise(timeline, warmup, last - length, last)


def _work_by_component(
    graph: TracedGraph, modules: Sequence[Sequence[str]], costs_ms: Mapping[str, float], launch_ms: float
) -> tuple[list[Work], Work]:
    """The work of each component's modules, and what every rank computes in every call."""
    owner = {module: k for k, names in enumerate(modules) for module in names}
    own: list[list[float]] = [[] for _ in modules]
    everywhere: list[float] = []
    for node in graph.nodes:
        if node.role is Role.CONSTANT:
            continue
        inside = [owner[module] for module in enclosing_modules(node.module) if module in owner]
        (own[inside[0]] if inside else everywhere).append(costs_ms[node.name])
    return [work(f"component {k}", times, launch_ms) for k, times in enumerate(own)], work(
        "between", everywhere, launch_ms
    )
