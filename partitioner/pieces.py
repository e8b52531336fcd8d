"""Pieces: figures of every run [a, b) of a Problem's nodes, as tables, and of two runs owned by one component.

What one component receives, computes, holds and reads stale depends on its own nodes only: a value that it reads and
does not make is received once, whoever makes it. So the figures of a split are sums, or maxima, over its components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from partitioner.problem import KEPT_MESSAGES, Bools, Devices, Floats, Ints, Mode, Problem

CHUNK = 200_000  # pairs of runs for which the overlaps are computed at a time, to bound memory


@dataclass(frozen=True, slots=True)
class Figures:
    """Additive figures of components, one array element each. load_ms is at speed 1."""

    load_ms: Floats
    receive_bytes: Floats
    messages: Floats
    staleness: Floats
    item_bytes: Floats
    activation_bytes: Floats

    def step_ms(self, devices: Devices, device: int, mode: Mode) -> Floats:
        """T of each component on that device; see problem.step_ms."""
        load = self.load_ms / devices.speeds[device]
        receive = self.messages * devices.latency_ms[device] + self.receive_bytes / (
            devices.link_gb_per_s[device] * 1e6
        )
        return np.maximum(load, receive) if mode == "lookahead" else load + receive

    def memory_bytes(self) -> Floats:
        """Shared items, activations and received boundary tensors."""
        return self.item_bytes + self.activation_bytes + KEPT_MESSAGES * self.receive_bytes

    def score(self, mode: Mode, byte_weight: float) -> Floats:
        """What is minimised among splits of about the same T: staleness (in async) + byte_weight x (bytes that are
        sent in a step + bytes of the shared items that are held, so that copies of them are avoided)."""
        weighted = byte_weight * (self.receive_bytes + self.item_bytes)
        return weighted if mode == "lookahead" else self.staleness + weighted


class Pieces:
    """Tables over all runs of a Problem's nodes; borders are 0..size."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.size = problem.size
        self._edges = _unique_edges(problem)
        self._items = _merged_items(problem)
        load = np.concatenate([[0.0], np.cumsum(problem.cost_ms)])
        self._runs = Figures(
            load_ms=_clipped(load[None, :] - load[:, None]) + self._item_table(self._items.cost_ms),
            receive_bytes=self._receive_table(problem.value_bytes.astype(np.float64)),
            messages=self._receive_table(np.ones(len(problem.value_bytes))),
            staleness=self._staleness_table(),
            item_bytes=self._item_table(self._items.size_bytes),
            activation_bytes=self._activation_table(),
        )
        self._edge_sum = self._edge_prefix_sums()
        self._shared = _next_reader(
            self._items.reading_item, self._items.reading_node, len(self._items.cost_ms), self.size
        )
        self._far = self._far_values()

    def runs(self) -> Figures:
        """Tables (size+1, size+1): figures of a component that is the run [a, b), at [a, b]; zero where a >= b."""
        return self._runs

    def folded(self, a: Ints, b: Ints, c: Ints, d: Ints) -> Figures:
        """Figures of components that are two runs [a, b) and [c, d) each, a <= b <= c <= d; either may be empty."""
        parts = [self._folded(a[i : i + CHUNK], b[i : i + CHUNK], c[i : i + CHUNK], d[i : i + CHUNK])
                 for i in range(0, max(len(a), 1), CHUNK)]  # fmt: skip
        return Figures(*(np.concatenate([getattr(p, name) for p in parts]) for name in Figures.__dataclass_fields__))

    def folded_load_ms(self, a: Ints, b: Ints, c: Ints, d: Ints) -> Floats:
        """Upper bound of the load alone (shared items that both runs read are counted twice)."""
        return self._runs.load_ms[a, b] + self._runs.load_ms[c, d]

    def _folded(self, a: Ints, b: Ints, c: Ints, d: Ints) -> Figures:
        runs = self._runs
        both = self._both_read(a, b, c, d)
        kept_bytes, kept_messages = self._kept(a, b, c, d)
        edges = self._edge_sum
        inner = edges[b, d] - edges[a, d] - edges[b, c] + edges[a, c]
        inner = np.where((a < b) & (c < d), inner, 0.0)
        return Figures(
            load_ms=runs.load_ms[a, b] + runs.load_ms[c, d] - both @ self._items.cost_ms,
            receive_bytes=runs.receive_bytes[a, b] + runs.receive_bytes[c, d] - kept_bytes,
            messages=runs.messages[a, b] + runs.messages[c, d] - kept_messages,
            staleness=np.maximum(runs.staleness[a, b] + runs.staleness[c, d] - inner, 0.0),
            item_bytes=runs.item_bytes[a, b] + runs.item_bytes[c, d] - both @ self._items.size_bytes,
            activation_bytes=np.maximum(runs.activation_bytes[a, b], runs.activation_bytes[c, d]),
        )

    def _both_read(self, a: Ints, b: Ints, c: Ints, d: Ints) -> Floats:
        """(pairs, items) 1 where an item is read in both runs."""
        following = self._shared
        return ((following[:, a] < b) & (following[:, c] < d)).T.astype(np.float64)

    def _kept(self, a: Ints, b: Ints, c: Ints, d: Ints) -> tuple[Floats, Floats]:
        """Bytes and messages that [c, d) need not receive, since [a, b) makes or receives them too."""
        producer, size_bytes, count, following = self._far
        made = (producer[:, None] >= a) & (producer[:, None] < b)
        received = (producer[:, None] < a) & (following[:, a] < b)
        kept = ((made | received) & (following[:, c] < d)).astype(np.float64)
        return size_bytes @ kept, count @ kept

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

    def _far_values(self) -> tuple[Ints, Floats, Floats, Ints]:
        """(producer, bytes, count, next reader) of the values, those with the same producer and readers merged."""
        values, readers = self._edges
        read_by: dict[int, list[int]] = {}
        for u, v in zip(values.tolist(), readers.tolist(), strict=True):
            read_by.setdefault(u, []).append(v)
        merged: dict[tuple[int, tuple[int, ...]], list[float]] = {}
        for u, nodes in read_by.items():
            sums = merged.setdefault((int(self.problem.value_producer[u]), tuple(nodes)), [0.0, 0.0])
            sums[0] += float(self.problem.value_bytes[u])
            sums[1] += 1
        index = np.array([i for i, (_, nodes) in enumerate(merged) for _ in nodes], dtype=np.int64)
        where = np.array([v for _, nodes in merged for v in nodes], dtype=np.int64)
        producer = np.array([p for p, _ in merged], dtype=np.int64)
        sums_of = np.array(list(merged.values()), dtype=np.float64).reshape(-1, 2)
        return producer, sums_of[:, 0], sums_of[:, 1], _next_reader(index, where, len(merged), self.size)


@dataclass(frozen=True, slots=True)
class _Items:
    cost_ms: Floats
    size_bytes: Floats
    reading_item: Ints
    reading_node: Ints


def _merged_items(problem: Problem) -> _Items:
    """The shared items that some node reads, those with the same readers as one."""
    read_by: dict[int, list[int]] = {}
    for i, v in zip(problem.reading_item.tolist(), problem.reading_node.tolist(), strict=True):
        read_by.setdefault(i, []).append(v)
    merged: dict[tuple[int, ...], list[float]] = {}
    for i, nodes in read_by.items():
        sums = merged.setdefault(tuple(sorted(nodes)), [0.0, 0.0])
        sums[0] += float(problem.item_cost_ms[i])
        sums[1] += float(problem.item_bytes[i])
    sums_of = np.array(list(merged.values()), dtype=np.float64).reshape(-1, 2)
    return _Items(
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


def _corners(size: int, first: Ints, last: Ints, reader: Ints, weight: Floats) -> Floats:
    """[a, b]: sum of the weights of those with first <= a <= last and reader < b."""
    table = np.zeros((size + 2, size + 2))
    np.add.at(table, (first, reader + 1), weight)
    np.add.at(table, (last + 1, reader + 1), -weight)
    return _clipped(table.cumsum(axis=0).cumsum(axis=1)[: size + 1, : size + 1])


def _clipped(table: Floats) -> Floats:
    """Nothing below zero (rounding), and zero where the run is empty."""
    return np.triu(np.maximum(table, 0.0), 1)


def _next_reader(index: Ints, where: Ints, count: int, size: int) -> Ints:
    """(count, size+1) smallest reader >= position, or size."""
    table = np.full((count, size + 1), size, dtype=np.int64)
    table[index, where] = where
    return np.minimum.accumulate(table[:, ::-1], axis=1)[:, ::-1]


def fits(figures: Figures, devices: Devices, device: int) -> Bools:
    """Where the components fit the device's memory."""
    limit = devices.memory_bytes[device]
    memory = figures.memory_bytes()
    return np.ones(memory.shape, dtype=np.bool_) if math.isinf(limit) else memory <= limit
