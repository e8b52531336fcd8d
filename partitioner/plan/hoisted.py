"""Hoisted nodes: those that do not depend on the latent, which a rank computes once or at the start of a call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node, Role


@dataclass(frozen=True)
class Hoisted:
    """Nodes without latent role that one rank computes for itself, in order.

    constant: once after loading. prompt: when a prompt input is new. timestep: at the start of every evaluation.
    """

    constant: tuple[str, ...]
    prompt: tuple[str, ...]
    timestep: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.constant, *self.prompt, *self.timestep)


def hoisted_nodes(graph: TracedGraph, own: Iterable[Node], given: set[str]) -> list[Node]:
    """The nodes without latent role that ``own`` needs, in execution order; ``given`` come from elsewhere."""
    needed: set[str] = set()
    stack = [name for node in own for name in node.reads]
    while stack:
        name = stack.pop()
        node = graph.node_by_name.get(name)
        if node is not None and node.role is not Role.LATENT and name not in needed and name not in given:
            needed.add(name)
            stack.extend(node.reads)
            if node.group >= 0:  # writes to storage that is needed are needed
                stack.extend(other.name for other in graph.nodes if other.group == node.group)
    return [node for node in graph.nodes if node.name in needed]


def by_role(nodes: Iterable[Node]) -> Hoisted:
    """Hoisted nodes, in execution order, sorted by when they are computed."""
    nodes = list(nodes)
    return Hoisted(
        constant=tuple(n.name for n in nodes if n.role is Role.CONSTANT),
        prompt=tuple(n.name for n in nodes if n.role is Role.PROMPT),
        timestep=tuple(n.name for n in nodes if n.role is Role.TIMESTEP),
    )
