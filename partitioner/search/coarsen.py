"""Coarsening: a Problem whose nodes are runs of neighbouring nodes of another one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from partitioner.search.arrays import Ints
from partitioner.search.problem import Problem
from partitioner.search.units import joined_units


@dataclass(frozen=True, eq=False)
class Coarse:
    """A Problem whose nodes are the runs of another one's nodes between borders."""

    fine: Problem
    borders: Ints  # (m+1,) from 0 to n, increasing
    problem: Problem = field(repr=False)

    def spread(self, assignment: Ints) -> Ints:
        """(m,) component of each run -> (n,) component of each node."""
        return np.repeat(assignment, np.diff(self.borders))


def coarsen(fine: Problem, borders: Iterable[int]) -> Coarse:
    """Merge the nodes between ``borders`` (0 and n are added): loads, bytes and staleness of every split at these
    borders are exactly what they are at node level; values that are only read where they are made vanish."""
    marks = np.unique(np.array([0, *borders, fine.size], dtype=np.int64))
    run_of = np.repeat(np.arange(len(marks) - 1), np.diff(marks))
    starts = marks[:-1]
    producer, reader = run_of[fine.edge_producer], run_of[fine.edge_reader]
    cut = producer != reader
    pairs, inverse = _unique_pairs(fine.edge_value[cut], reader[cut])
    staleness = np.bincount(inverse, weights=fine.edge_staleness[cut], minlength=len(pairs)).astype(np.float64)
    values, edge_value = np.unique(pairs[:, 0], return_inverse=True)
    readings, _ = _unique_pairs(fine.reading_item, run_of[fine.reading_node])
    last = np.append(starts[1:], fine.size) - 1
    problem = Problem(
        names=tuple(
            fine.names[a] if a == b else f"{fine.names[a]} .. {fine.names[b]}"
            for a, b in zip(starts.tolist(), last.tolist(), strict=True)
        ),
        cost_ms=np.add.reduceat(fine.cost_ms, starts),
        macs=np.add.reduceat(fine.macs, starts),
        activation_bytes=np.maximum.reduceat(fine.activation_bytes, starts),
        together=_coarse_units(fine, run_of, len(starts)),
        light=np.zeros(len(starts), dtype=np.bool_),
        value_names=tuple(fine.value_names[v] for v in values.tolist()),
        value_producer=run_of[fine.value_producer[values]],
        value_bytes=fine.value_bytes[values],
        edge_value=edge_value.astype(np.int64),
        edge_reader=pairs[:, 1],
        edge_staleness=staleness,
        item_cost_ms=fine.item_cost_ms,
        item_macs=fine.item_macs,
        item_bytes=fine.item_bytes,
        item_parameter_bytes=fine.item_parameter_bytes,
        reading_item=readings[:, 0],
        reading_node=readings[:, 1],
        driver_ms=fine.driver_ms,
    )
    return Coarse(fine, marks, problem)


def _unique_pairs(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """((k, 2) distinct pairs in order, position of each given pair among them)."""
    stacked = np.stack([first, second], axis=1) if len(first) else np.zeros((0, 2), dtype=np.int64)
    pairs, inverse = np.unique(stacked, axis=0, return_inverse=True)
    return pairs.astype(np.int64), inverse.reshape(-1).astype(np.int64)


def _coarse_units(fine: Problem, run_of: Ints, count: int) -> Ints:
    """What stays together among the runs: runs that hold nodes of one unit, transitively."""
    return joined_units(count, [run_of[members].tolist() for members in fine.units.values()])
