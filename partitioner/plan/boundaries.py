"""Boundary tensors: the values that one component makes and another reads."""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.graph.ir import TracedGraph
from partitioner.plan.placement import NamePlacement


@dataclass(frozen=True, slots=True)
class BoundaryTensor:
    """A boundary tensor: ``value``, computed on ``source``, read on each of ``readers`` (ascending)."""

    value: str
    source: int
    readers: tuple[int, ...]


def find_boundaries(graph: TracedGraph, placement: NamePlacement) -> tuple[BoundaryTensor, ...]:
    """The values that cross components, in execution order of their producers.

    placement: latent node name -> component. A result that is not computed by the last component is no
    boundary here: ``build_programs`` refuses it.
    """
    found = []
    for node in graph.latent_nodes:
        source = placement[node.name]
        readers = {placement[name] for name in graph.readers.get(node.name, ())} - {source}
        if readers:
            found.append(BoundaryTensor(node.name, source, tuple(sorted(readers))))
    return tuple(found)
