"""METIS's split of a Problem (optional extra "metis"), one more candidate where the graph has parallel branches.

Cutting between branches keeps each of them whole, which no run of nodes in execution order does.
"""

from __future__ import annotations

import numpy as np

from partitioner.search.arrays import Floats, Ints
from partitioner.search.devices import Devices
from partitioner.search.problem import Problem

UNEVEN = 4  # per mille that METIS may overload a device: about what the search allows itself
CUTS = 8  # from so many starts METIS keeps its best
LARGEST = 1_000_000  # of METIS's integer weights


def metis_placement(problem: Problem, devices: Devices) -> Ints | None:
    """(n,) device of each node, about even in load, that sends few bytes; None without pymetis, or without a split.

    Memories and the communication's share of T are not looked at, nor are the nodes that stay together.
    """
    try:
        import pymetis
    except ImportError:
        return None
    ends = np.sort(np.stack([problem.edge_producer, problem.edge_reader], axis=1), axis=1)
    pairs, inverse = np.unique(ends, axis=0, return_inverse=True)
    sent: Floats = np.zeros(len(pairs))
    np.add.at(sent, inverse.reshape(-1), problem.value_bytes[problem.edge_value])
    sent = np.concatenate([sent, sent])
    source, target = (np.concatenate([pairs[:, i], pairs[:, 1 - i]]) for i in (0, 1))
    by_source = np.argsort(source, kind="stable")
    found = pymetis.part_graph(
        len(devices),
        pymetis.CSRAdjacency(
            np.searchsorted(source[by_source], np.arange(problem.size + 1)).tolist(), target[by_source].tolist()
        ),
        vweights=_integers(problem.load_ms).tolist(),
        eweights=(1 + _integers(sent[by_source])).tolist(),
        tpwgts=[speed / sum(devices.speeds) for speed in devices.speeds],
        options=pymetis.Options(ufactor=UNEVEN, ncuts=CUTS, seed=0),
    )
    placed = np.array(found.vertex_part, dtype=np.int64)
    return placed if len(np.unique(placed)) == len(devices) else None


def _integers(weights: Floats) -> Ints:
    most = float(weights.max(initial=0.0))
    return np.rint(weights * (LARGEST / most)).astype(np.int64) if most > 0 else np.zeros(len(weights), dtype=np.int64)
