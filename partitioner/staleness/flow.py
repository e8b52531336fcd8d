"""Staleness weights of edges from the graph alone, for denoisers on which nothing was measured.

To first order the error that lag causes is a sum over the edges that are cut, so each edge has a weight and a split's
staleness is the sum of its cut edges' weights. Without a real denoiser to measure on (see measured.py), the weight is
the edge's share of the output: the output's influence is 1, each node hands its influence on to the values that it
reads in proportion to their elements, and an edge weighs what flows through it. The flow is conserved, so a cut that
separates the latent from the output weighs 1 if each path crosses it once: a chain of N components weighs N-1, less
what skip connections jump over, and a fold that keeps the outer skip connections fresh pays only for what goes through
the inside. The assumption is that all values change equally, relative to their size, from one step to the next.
"""

from __future__ import annotations

import numpy as np

from partitioner.search.arrays import Floats, Ints


def flow_weights(node_count: int, producer: Ints, reader: Ints, elements: Ints, results: Ints) -> Floats:
    """Weight of each edge: the share of the output's influence that flows through it.

    producer, reader: nodes of each edge, in execution order (producer < reader); elements: of the value that each
    edge reads; results: the nodes that make the output.
    """
    elements_read = np.bincount(reader, weights=elements, minlength=node_count)
    share = elements / np.maximum(elements_read[reader], 1)
    influence = np.zeros(node_count)
    influence[results] = 1 / max(len(results), 1)
    weights = np.zeros(len(producer))
    by_reader = np.argsort(reader, kind="stable")
    starts = np.searchsorted(reader[by_reader], np.arange(node_count + 1))
    for node in range(node_count - 1, -1, -1):
        edges = by_reader[starts[node] : starts[node + 1]]
        weights[edges] = influence[node] * share[edges]
        np.add.at(influence, producer[edges], weights[edges])
    return weights
