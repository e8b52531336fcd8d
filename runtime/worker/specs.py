"""Specs: all that a rank needs to know about its component of one traced graph, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from partitioner.graph.ir import Node, Parameter, Role, TensorMeta, TracedGraph
from partitioner.plan.program import Compute, Preamble, Program, build_preamble, build_programs, find_boundaries


@dataclass(frozen=True, slots=True)
class Wire:
    """A tensor that can travel between ranks: a boundary tensor, an input, or a result of another branch.

    source: the component that sends it; None where the driver does: an input or a value of its preamble.
    role: of an input; LATENT otherwise.
    """

    value: str
    meta: TensorMeta
    source: int | None
    role: Role = Role.LATENT


@dataclass(frozen=True)
class ComponentSpec:
    """All that a rank needs to know about its component of one traced graph; picklable, holds no tensor.

    wires: everything that travels in this graph, the same tuple on every rank; a wire's index is its name in
    message headers.
    """

    program: Program
    nodes: tuple[Node, ...]
    parameters: tuple[Parameter, ...]
    wires: tuple[Wire, ...]


@dataclass(frozen=True)
class PreambleSpec:
    """What the driver computes for the components: see partitioner.plan.program.Preamble."""

    program: Preamble
    nodes: tuple[Node, ...]
    parameters: tuple[Parameter, ...]


def build_specs(
    graph: TracedGraph, placement: Mapping[str, int], components: int
) -> tuple[list[ComponentSpec], PreambleSpec]:
    """The spec of each component, and the driver's preamble. placement: latent node name -> component."""
    preamble = build_preamble(graph, placement, components)
    wires = tuple(
        [Wire(item.name, item.meta, None, item.role) for item in graph.inputs]
        + [Wire(name, graph.node_by_name[name].meta, None, graph.node_by_name[name].role) for name in preamble.values]
        + [
            Wire(boundary.value, graph.node_by_name[boundary.value].meta, boundary.source)
            for boundary in find_boundaries(graph, placement)
        ]
        + [Wire(name, graph.node_by_name[name].meta, placement[name]) for name in dict.fromkeys(graph.result_values)]
    )

    def nodes(names: set[str]) -> tuple[Node, ...]:
        return tuple(node for node in graph.nodes if node.name in names)

    def parameters(names: Sequence[str]) -> tuple[Parameter, ...]:
        return tuple(graph.parameter_by_name[name] for name in names)

    specs = []
    for program in build_programs(graph, placement, components):
        names = {name for step in program.instructions if isinstance(step, Compute) for name in step.nodes}
        own = nodes(names | set(program.hoisted.names))
        specs.append(ComponentSpec(program, own, parameters(program.parameters), wires))
    return specs, PreambleSpec(preamble, nodes(set(preamble.hoisted.names)), parameters(preamble.parameters))
