"""EdgeErrors: the measured error of the output for each edge whose reader sees last step's value; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from partitioner.graph.ir import TracedGraph
from partitioner.search.arrays import Floats
from partitioner.search.problem import Problem
from partitioner.search.split import Split

NamedEdge = tuple[str, str]  # names of a value's node and of a node that reads it


@dataclass(frozen=True, eq=False)
class EdgeErrors:
    """Sketched error of each edge that may be cut: edges[i] has row i of sketches, (edges, probes x steps).

    The norm of a sketch, or of a sum of sketches, estimates the root mean square over steps of the output error's norm.
    """

    edges: tuple[NamedEdge, ...]
    sketches: Floats

    @cached_property
    def weights(self) -> Mapping[NamedEdge, float]:
        """Norm of each edge's error, for build_problem; a split's error is at most their sum."""
        norms = np.linalg.norm(self.sketches, axis=1)
        return dict(zip(self.edges, norms.tolist(), strict=True))

    def condensed(self, parts: int) -> Floats:
        """(edges, parts): the sketches in the directions in which they are largest, so that norms stay about right."""
        directions: Floats = np.linalg.svd(self.sketches, full_matrices=False)[2][:parts]
        condensed: Floats = self.sketches @ directions.T
        return condensed

    def error(self, placement: Mapping[str, int]) -> float:
        """Norm of the summed errors of all edges between components. placement: latent node -> component."""
        cut = [i for i, (producer, reader) in enumerate(self.edges) if placement[producer] != placement[reader]]
        return float(np.linalg.norm(self.sketches[cut].sum(axis=0)))


def least_error(errors: EdgeErrors, problem: Problem, splits: Sequence[Split]) -> Split:
    """Of a few good splits (such as Solver.sweep's) the one whose summed error is least, not the sum of its norms."""
    return min(splits, key=lambda split: errors.error(dict(zip(problem.names, split.assignment, strict=True))))


def edge_errors_by_key(
    graph: TracedGraph, edges: Sequence[tuple[str, str]], sketches: Sequence[Sequence[float]]
) -> EdgeErrors | None:
    """EdgeErrors of a graph, of what was measured by the stable keys of nodes; None unless that has all its edges."""
    row = {edge: i for i, edge in enumerate(edges)}
    placed = {node.name: node.key for node in graph.latent_nodes}
    own = [(read, node.name) for node in graph.latent_nodes for read in node.reads if read in placed]
    rows = [row.get((placed[producer], placed[reader])) for producer, reader in own]
    found = [number for number in rows if number is not None]
    if not own or len(found) < len(own):
        return None
    return EdgeErrors(tuple(own), np.array([sketches[number] for number in found], dtype=np.float64))
