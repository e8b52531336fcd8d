"""Specs: all that a rank needs to know about its component of one traced graph, as data without tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node, Parameter, Role, TensorMeta
from partitioner.plan.boundaries import find_boundaries
from partitioner.plan.build_programs import build_programs
from partitioner.plan.preamble import Preamble, build_preamble
from partitioner.plan.program import Compute, Program


@dataclass(frozen=True, slots=True)
class Wire:
    """A tensor that ranks may send each other: an input, a value of the preamble, a boundary tensor or a result.

    Its index in the tuple of its graph's wires names it in message headers.

    value: its name in the graph. meta: its shape, strides and dtype. source: the component that sends it, None for
    inputs and values of the preamble, which the driver sends. role: of those; LATENT for all others.
    """

    value: str
    meta: TensorMeta
    source: int | None
    role: Role = Role.LATENT


@dataclass(frozen=True)
class ComponentSpec:
    """All that a rank needs to know about its component of one traced graph; picklable, holds no tensor.

    program: its instructions. nodes, parameters: what these name. wires: every tensor that ranks may send each other
    in this graph, the same tuple on every rank.
    """

    program: Program
    nodes: tuple[Node, ...]
    parameters: tuple[Parameter, ...]
    wires: tuple[Wire, ...]

    @cached_property
    def given(self) -> tuple[tuple[int, Wire], ...]:
        """The wires of what the driver sends it, each with its index."""
        read = set(self.program.inputs)
        return tuple((i, wire) for i, wire in enumerate(self.wires) if wire.source is None and wire.value in read)


@dataclass(frozen=True)
class PreambleSpec:
    """What the driver computes for the components: see partitioner.plan.preamble.Preamble."""

    program: Preamble
    nodes: tuple[Node, ...]
    parameters: tuple[Parameter, ...]


def build_specs(
    graph: TracedGraph, placement: Mapping[str, int], components: int
) -> tuple[list[ComponentSpec], PreambleSpec]:
    """The spec of each component, and of the driver's preamble.

    Args:
        graph: the traced denoiser.
        placement: latent node name -> component.
        components: how many there are.
    """
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
