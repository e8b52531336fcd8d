"""In what a traced graph differs from the one that a plan was made for."""

from __future__ import annotations

from partitioner.graph.ir import TracedGraph
from partitioner.graph.modules import enclosing_modules
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


def is_modified(class_name: str, placement: KeyPlacement, graph: TracedGraph) -> bool:
    """Whether a graph is that of the plan's denoiser with something done to it, such as a LoRA or other processors.

    Then every module that the plan knows is still there, or others are in its place below it; and every node that is
    new is in a module that the plan knows, or below one that was wrapped.
    """
    keys = {node.key for node in graph.latent_nodes}
    known, now = ({key.partition("/")[0] for key in some} for some in (placement, keys))
    above = {outer for module in now for outer in enclosing_modules(module)[1:]}
    wrapped = {module for key in placement.keys() - keys if (module := key.partition("/")[0]) in above}
    is_there = all(module in now or module in above for module in known)
    new = {key.partition("/")[0] for key in keys - placement.keys()}
    belongs = all(module in known or wrapped & set(enclosing_modules(module)) for module in new)
    return graph.class_name == class_name and bool(new) and is_there and belongs


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
