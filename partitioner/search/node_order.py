"""Another execution order of a Problem, in which each parallel branch is one run of nodes.

Contiguous splits of it are splits that the given order does not have.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from partitioner.search.arrays import Ints
from partitioner.search.problem import Problem


def depth_first_order(problem: Problem) -> Ints:
    """(n,) nodes in an order in which each is directly preceded by what only it needs, as far as possible.

    Reverse depth-first search from the last node, sources in their own order, so that each parallel branch stands in
    one run instead of in turn with the others. Units (nodes that stay together) keep their places relative to each
    other.
    """
    sources: list[list[int]] = [[] for _ in range(problem.size)]
    for source, reader in sorted(zip(problem.edge_producer.tolist(), problem.edge_reader.tolist(), strict=True)):
        sources[reader].append(source)
    for members in problem.units.values():
        for before, after in zip(members[:-1].tolist(), members[1:].tolist(), strict=True):
            sources[after].append(before)
    read = set(problem.edge_producer.tolist())
    order: list[int] = []
    seen = [False] * problem.size
    for end in [v for v in range(problem.size) if v not in read or v == problem.size - 1]:
        waiting = [(end, 0)]
        seen[end] = True
        while waiting:
            node, position = waiting.pop()
            while position < len(sources[node]) and seen[sources[node][position]]:
                position += 1
            if position == len(sources[node]):
                order.append(node)
            else:
                source = sources[node][position]
                seen[source] = True
                waiting += [(node, position + 1), (source, 0)]
    return np.array(order, dtype=np.int64)


def reordered(problem: Problem, order: Ints) -> Problem:
    """The same Problem with its nodes in another execution order."""
    place = np.empty_like(order)
    place[order] = np.arange(problem.size)
    return replace(
        problem,
        names=tuple(problem.names[v] for v in order.tolist()),
        cost_ms=problem.cost_ms[order],
        macs=problem.macs[order],
        activation_bytes=problem.activation_bytes[order],
        together=problem.together[order],
        light=problem.light[order],
        value_producer=place[problem.value_producer],
        edge_reader=place[problem.edge_reader],
        reading_node=place[problem.reading_node],
    )
