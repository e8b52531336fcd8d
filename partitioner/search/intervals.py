"""Intervals: tables of the figures of every run [a, b) of a Problem's nodes, and of two runs that one component owns.

What a component receives, computes, holds and reads stale depends on its own nodes only: a value that it reads and does
not make is received once, whoever makes it. So the figures of a split are sums, or maxima, over its components, and a
table lookup gives those of one that is a single run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partitioner.search.arrays import Floats, Ints
from partitioner.search.interval_figures import IntervalFigures
from partitioner.search.problem import Problem

Shorts = NDArray[np.int16]
CHUNK = 4096  # components whose overlaps are computed at a time, so that the arrays stay in cache


class Intervals:
    """Tables over all runs of a Problem's nodes; borders are 0..size."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.size = problem.size
        self._edges = _unique_edges(problem)
        self._items = _merged_items(problem)
        self.node_ms = problem.load_ms + self._items.own_cost_ms  # what a node costs wherever it is
        self.shared_ms = float(self._items.cost_ms.sum())  # what may be computed by several components
        self._runs = IntervalFigures(
            load_ms=_run_sums(self.node_ms) + self._item_table(self._items.cost_ms),
            receive_bytes=self._receive_table(problem.value_bytes.astype(np.float64)),
            messages=self._receive_table(np.ones(len(problem.value_bytes))),
            staleness=self._staleness_table(),
            item_bytes=_run_sums(self._items.own_bytes) + self._item_table(self._items.size_bytes),
            activation_bytes=self._activation_table(),
        )
        self._edge_sum = self._edge_prefix_sums()
        self._shared = _next_reader(
            self._items.reading_item, self._items.reading_node, len(self._items.cost_ms), self.size
        )
        self._far = self._far_values()

    def runs(self) -> IntervalFigures:
        """Tables (size+1, size+1): figures of a component that is the run [a, b), at [a, b]; zero where a >= b."""
        return self._runs

    def folded(self, a: Ints, b: Ints, c: Ints, d: Ints) -> IntervalFigures:
        """IntervalFigures of components that are two runs [a, b) and [c, d) each.

        a <= b <= c <= d; either run may be empty, and where neither is, there is something between them (b < c).
        """
        figures = self._apart(a, b, c, d)
        both = np.flatnonzero((a < b) & (c < d))
        for i in range(0, len(both), CHUNK):
            part = both[i : i + CHUNK]
            self._share(figures, part, a[part], b[part], c[part], d[part])
        return figures

    def _apart(self, a: Ints, b: Ints, c: Ints, d: Ints) -> IntervalFigures:
        """IntervalFigures as if the two runs were different components."""
        runs = self._runs
        return IntervalFigures(
            load_ms=runs.load_ms[a, b] + runs.load_ms[c, d],
            receive_bytes=runs.receive_bytes[a, b] + runs.receive_bytes[c, d],
            messages=runs.messages[a, b] + runs.messages[c, d],
            staleness=runs.staleness[a, b] + runs.staleness[c, d],
            item_bytes=runs.item_bytes[a, b] + runs.item_bytes[c, d],
            activation_bytes=np.maximum(runs.activation_bytes[a, b], runs.activation_bytes[c, d]),
        )

    def _share(self, figures: IntervalFigures, index: Ints, a: Ints, b: Ints, c: Ints, d: Ints) -> None:
        """Take off what the two runs of the components at ``index`` have in common."""
        edges = self._edge_sum
        inner = edges[b, d] - edges[a, d] - edges[b, c] + edges[a, c]
        figures.staleness[index] = np.maximum(figures.staleness[index] - inner, 0.0)
        if len(self._items.cost_ms):
            following = self._shared
            both = ((following[a] < b[:, None]) & (following[c] < d[:, None])).astype(np.float64)
            figures.load_ms[index] -= both @ self._items.cost_ms
            figures.item_bytes[index] -= both @ self._items.size_bytes
        # a value that [a, b) makes, or receives, is not received once more for [c, d)
        producer, weights, following = self._far
        present = (following[a] < b[:, None]) | (producer >= a[:, None])
        present &= producer < b[:, None]
        present &= following[c] < d[:, None]
        shared = present.astype(np.float64) @ weights
        figures.receive_bytes[index] -= shared[:, 0]
        figures.messages[index] -= shared[:, 1]

    def _item_table(self, weight: Floats) -> Floats:
        """[a, b]: sum of the weights of the items read in [a, b), each once."""
        items, nodes = self._items.reading_item, self._items.reading_node
        previous = _previous(items, nodes, np.full(len(weight), -1, dtype=np.int64))
        return _corners(self.size, previous + 1, nodes, nodes, weight[items])

    def _receive_table(self, weight: Floats) -> Floats:
        """[a, b]: sum of the weights of the values made before a and read in [a, b), each once."""
        values, readers = self._edges
        previous = _previous(values, readers, self.problem.value_producer)
        return _corners(self.size, previous + 1, readers, readers, weight[values])

    def _staleness_table(self) -> Floats:
        problem = self.problem
        return _corners(
            self.size, problem.edge_producer + 1, problem.edge_reader, problem.edge_reader, problem.edge_staleness
        )

    def _activation_table(self) -> Floats:
        n = self.size
        table = np.zeros((n + 1, n + 1))
        starts, columns = np.arange(n)[:, None], np.arange(n)[None, :]
        alive = np.where(columns >= starts, self.problem.activation_bytes[None, :], 0).astype(np.float64)
        table[:n, 1:] = np.maximum.accumulate(alive, axis=1)
        return table

    def _edge_prefix_sums(self) -> Floats:
        """[p, r]: staleness of the edges from nodes before p to nodes before r."""
        table = np.zeros((self.size + 1, self.size + 1))
        np.add.at(table, (self.problem.edge_producer + 1, self.problem.edge_reader + 1), self.problem.edge_staleness)
        return table.cumsum(axis=0).cumsum(axis=1)

    def _far_values(self) -> tuple[Shorts, Floats, Shorts]:
        """(producer, bytes and count, next reader) of the values that are read beyond the following node.

        Those with the same producer and readers count as one.
        """
        values, readers = self._edges
        read_by: dict[int, list[int]] = {}
        for u, v in zip(values.tolist(), readers.tolist(), strict=True):
            read_by.setdefault(u, []).append(v)
        merged: dict[tuple[int, tuple[int, ...]], list[float]] = {}
        for u, nodes in read_by.items():
            producer = int(self.problem.value_producer[u])
            if nodes[-1] > producer + 1:
                sums = merged.setdefault((producer, tuple(nodes)), [0.0, 0.0])
                sums[0] += float(self.problem.value_bytes[u])
                sums[1] += 1
        index = np.array([i for i, (_, nodes) in enumerate(merged) for _ in nodes], dtype=np.int64)
        where = np.array([v for _, nodes in merged for v in nodes], dtype=np.int64)
        return (
            np.array([producer for producer, _ in merged], dtype=np.int16),
            np.array(list(merged.values()), dtype=np.float64).reshape(-1, 2),
            _next_reader(index, where, len(merged), self.size),
        )


@dataclass(frozen=True, slots=True)
class _Items:
    """Shared items with several readers, those with the same readers as one; the others are their reader's own."""

    own_cost_ms: Floats
    own_bytes: Floats
    cost_ms: Floats
    size_bytes: Floats
    reading_item: Ints
    reading_node: Ints


def _merged_items(problem: Problem) -> _Items:
    read_by: dict[int, list[int]] = {}
    for i, v in zip(problem.reading_item.tolist(), problem.reading_node.tolist(), strict=True):
        read_by.setdefault(i, []).append(v)
    own_cost, own_bytes = np.zeros(problem.size), np.zeros(problem.size)
    merged: dict[tuple[int, ...], list[float]] = {}
    for i, nodes in read_by.items():
        cost, size = float(problem.item_cost_ms[i]), float(problem.item_bytes[i])
        if len(nodes) == 1:
            own_cost[nodes[0]] += cost
            own_bytes[nodes[0]] += size
        else:
            sums = merged.setdefault(tuple(sorted(nodes)), [0.0, 0.0])
            sums[0] += cost
            sums[1] += size
    sums_of = np.array(list(merged.values()), dtype=np.float64).reshape(-1, 2)
    return _Items(
        own_cost,
        own_bytes,
        sums_of[:, 0],
        sums_of[:, 1],
        np.array([i for i, nodes in enumerate(merged) for _ in nodes], dtype=np.int64),
        np.array([v for nodes in merged for v in nodes], dtype=np.int64),
    )


def _unique_edges(problem: Problem) -> tuple[Ints, Ints]:
    """(value, reader) pairs, ordered, each once."""
    key = np.unique(problem.edge_value * problem.size + problem.edge_reader)
    return key // problem.size, key % problem.size


def _previous(group: Ints, where: Ints, before_first: Ints) -> Ints:
    """For ordered (group, where) pairs: ``where`` of the same group's preceding pair, or before_first[group]."""
    previous = before_first[group]
    same = np.flatnonzero(group[1:] == group[:-1]) + 1
    previous[same] = where[same - 1]
    return previous


def _run_sums(weight: Floats) -> Floats:
    """[a, b]: sum of the weights of the nodes in [a, b)."""
    before = np.concatenate([[0.0], np.cumsum(weight)])
    return _clipped(before[None, :] - before[:, None])


def _corners(size: int, first: Ints, last: Ints, reader: Ints, weight: Floats) -> Floats:
    """[a, b]: sum of the weights of those with first <= a <= last and reader < b."""
    table = np.zeros((size + 2, size + 2))
    np.add.at(table, (first, reader + 1), weight)
    np.add.at(table, (last + 1, reader + 1), -weight)
    return _clipped(table.cumsum(axis=0).cumsum(axis=1)[: size + 1, : size + 1])


def _clipped(table: Floats) -> Floats:
    """Nothing below zero (rounding), and zero where the run is empty."""
    return np.triu(np.maximum(table, 0.0), 1)


def _next_reader(index: Ints, where: Ints, count: int, size: int) -> Shorts:
    """(size+1, count) smallest reader >= position, or size."""
    table = np.full((size + 1, count), size, dtype=np.int16)
    table[where, index] = where
    return np.ascontiguousarray(np.minimum.accumulate(table[::-1], axis=0)[::-1])
