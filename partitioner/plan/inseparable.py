"""Which latent nodes of a graph must be on one component."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from partitioner.graph.nodes import Node


def inseparable_pairs(nodes: Sequence[Node]) -> Iterator[tuple[int, int]]:
    """Pairs of positions in ``nodes`` (the latent nodes in execution order) that no cut may separate.

    They are nodes of one group, which share storage that is written to, and an operator with several outputs with what
    takes these apart, for only single tensors are sent.
    """
    position = {node.name: v for v, node in enumerate(nodes)}
    first_of_group: dict[int, int] = {}
    for v, node in enumerate(nodes):
        if node.group >= 0:
            yield first_of_group.setdefault(node.group, v), v
        for read in node.reads:
            if read in position and len(nodes[position[read]].outputs) != 1:
                yield position[read], v
