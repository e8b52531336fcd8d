"""graph_bytes: how much memory the CUDA graphs of a component keep, beside what it takes without them.

What a graph reads and writes is at fixed places (runtime.devices.cuda_graphs): of every run of nodes that is one graph,
a buffer for each tensor that it reads, but for parameters, constants and what another graph of the component makes, and
what it makes for later ones or for others, which lives as long as the graph. What lives within one graph counts as
activations, with or without graphs.
"""

from __future__ import annotations

from partitioner.graph.ir import TracedGraph
from partitioner.plan.program import Compute, Program


def graph_bytes(graph: TracedGraph, program: Program) -> int:
    """Bytes of the buffers and outputs of all CUDA graphs of one component.

    Args:
        graph: The traced denoiser.
        program: What the component does.
    """
    size = {item.name: item.meta.size_bytes for item in graph.inputs}
    size |= {node.name: sum(meta.size_bytes for meta in node.outputs) for node in graph.nodes}
    runs = [(step.reads, step.keeps) for step in program.instructions if isinstance(step, Compute)]
    if program.hoisted.timestep:
        runs.append(_timestep_run(graph, program))
    made = {value for _, keeps in runs for value in keeps}
    fixed = {parameter.name for parameter in graph.parameters} | set(program.hoisted.constant) | made
    buffered = sum(size[value] for reads, _ in runs for value in reads if value not in fixed)
    return buffered + sum(size[value] for value in made)


def _timestep_run(graph: TracedGraph, program: Program) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is read, and kept, of the nodes that depend on the timestep only."""
    own = set(program.hoisted.timestep)
    nodes = [graph.node_by_name[name] for name in program.hoisted.timestep]
    reads = dict.fromkeys(value for node in nodes for value in node.reads if value not in own)
    later = {v for step in program.instructions if isinstance(step, Compute) for v in step.reads}
    return tuple(reads), tuple(name for name in program.hoisted.timestep if name in later)
