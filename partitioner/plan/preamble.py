"""Preamble: what the driver computes for several components, derived from graph and placement, never stored."""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from partitioner.plan.hoisted import Hoisted, by_role, hoisted_nodes
from partitioner.plan.placement import NamePlacement


@dataclass(frozen=True)
class Preamble:
    """What the driver computes for several components at once, and sends with each evaluation's inputs.

    A hoisted node that several components need and that rests on parameters (the timestep's embedding, say) would
    put those parameters on each of them. It is as fresh here: it depends on the driver's inputs only.
    values: what components read of it, in execution order. inputs, parameters: what its nodes read.
    """

    hoisted: Hoisted
    values: tuple[str, ...]
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]


def build_preamble(graph: TracedGraph, placement: NamePlacement, components: int) -> Preamble:
    """What the driver computes for the programs of the same arguments."""
    central = shared_nodes(graph, placement, components)
    read: set[str] = set()
    for component in range(components):
        own = [node for node in graph.latent_nodes if placement[node.name] == component]
        needed = hoisted_nodes(graph, own, central)
        read |= {name for node in (*own, *needed) for name in node.reads if name in central}
    nodes = hoisted_nodes(graph, [graph.node_by_name[name] for name in read], set())
    nodes = [node for node in graph.nodes if node.name in {n.name for n in nodes} | read]
    reads = {value for node in nodes for value in node.reads}
    return Preamble(
        hoisted=by_role(nodes),
        values=tuple(node.name for node in nodes if node.name in read),
        inputs=tuple(i.name for i in graph.inputs if i.name in reads),
        parameters=tuple(p.name for p in graph.parameters if p.name in reads),
    )


def shared_nodes(graph: TracedGraph, placement: NamePlacement, components: int) -> set[str]:
    """Names of the prompt and timestep nodes that several components need and that rest on parameters."""
    needed_by: dict[str, int] = {}
    for component in range(components):
        own = [node for node in graph.latent_nodes if placement[node.name] == component]
        for node in hoisted_nodes(graph, own, set()):
            needed_by[node.name] = needed_by.get(node.name, 0) + 1
    rests: set[str] = {parameter.name for parameter in graph.parameters}
    central: set[str] = set()
    for node in graph.nodes:
        if node.role is Role.LATENT or not any(name in rests for name in node.reads):
            continue
        rests.add(node.name)
        if (
            node.role is not Role.CONSTANT
            and node.group < 0
            and len(node.outputs) == 1
            and needed_by.get(node.name, 0) > 1
        ):
            central.add(node.name)
    return central
