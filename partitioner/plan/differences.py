"""In what a traced graph differs from the one that a plan was made for."""

from __future__ import annotations

from partitioner.graph.ir import TracedGraph
from partitioner.plan.boundaries import find_boundaries
from partitioner.plan.fields import shown_briefly
from partitioner.plan.placement import KeyPlacement, NamePlacement
from partitioner.plan.records import Boundary


def differences_of(class_name: str, placement: KeyPlacement, graph: TracedGraph) -> list[str]:
    """The first few differences in words: class, nodes that are missing or new."""
    found = [f"class {graph.class_name}"] if graph.class_name != class_name else []
    keys = {node.key: None for node in graph.latent_nodes}
    for text, one, other in (
        ("is not in the model", placement, keys),
        ("is not in the plan", keys, placement),
    ):
        only = [key for key in one if key not in other]
        found += [f"node {shown_briefly(key)} {text}" for key in only[:2]]
        if len(only) > 2:
            found.append(f"nor are {len(only) - 2} more")
    return found


def boundaries_of(graph: TracedGraph, placement: NamePlacement) -> tuple[Boundary, ...]:
    """The boundary tensors of a placement as the plan file has them, in execution order."""
    found = []
    for cut in find_boundaries(graph, placement):
        node = graph.node_by_name[cut.value]
        found.append(
            Boundary(
                key=node.key,
                source=cut.source,
                readers=cut.readers,
                dtype=node.meta.dtype,
                shape=node.meta.shape,
                size_bytes=node.meta.size_bytes,
            )
        )
    return tuple(found)
