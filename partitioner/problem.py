"""Problem and Devices: all that a solver may know, as plain numbers in numpy arrays; no torch.

Legend: n nodes in execution order; values (tensors that nodes make); edges (a node reads a value); shared
items (what every component that reads it has for itself: a parameter, a timestep node, a kept prompt value).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from partitioner.errors import UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Mode = Literal["lookahead", "async"]
MODES: tuple[Mode, ...] = ("lookahead", "async")

KEPT_MESSAGES = 3  # of each received boundary tensor, what the deepest predictor looks at


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be placed. Times are those of a device of speed 1.

    Per node (length n): names, cost_ms, macs, activation_bytes (alive in a sequential run while the node runs),
    together (nodes with the same number >= 0 stay on one component), light (views, casts and elementwise nodes: a cut
    is only made before one of them where that sends fewer bytes than before the next heavy node).
    Per value: value_names, value_producer (node), value_bytes.
    Per edge: edge_value, edge_reader (node, later than the producer), edge_staleness (its weight when it is cut).
    Per shared item: item_cost_ms and item_macs (each step), item_bytes (memory), of which item_parameter_bytes.
    Per reading of an item: reading_item, reading_node; a node reads an item once at most.
    """

    names: tuple[str, ...]
    cost_ms: Floats
    macs: Ints
    activation_bytes: Ints
    together: Ints
    light: Bools
    value_names: tuple[str, ...]
    value_producer: Ints
    value_bytes: Ints
    edge_value: Ints
    edge_reader: Ints
    edge_staleness: Floats
    item_cost_ms: Floats
    item_macs: Ints
    item_bytes: Ints
    item_parameter_bytes: Ints
    reading_item: Ints
    reading_node: Ints

    def __post_init__(self) -> None:
        n = len(self.names)
        lengths = (
            (n, (self.cost_ms, self.macs, self.activation_bytes, self.together, self.light)),
            (len(self.value_names), (self.value_producer, self.value_bytes)),
            (len(self.edge_value), (self.edge_reader, self.edge_staleness)),
            (len(self.item_cost_ms), (self.item_macs, self.item_bytes, self.item_parameter_bytes)),
            (len(self.reading_item), (self.reading_node,)),
        )
        if n == 0:
            raise UsageError("the graph has no node that depends on the latent, so there is nothing to split")
        for array in (self.cost_ms, self.edge_staleness, self.item_cost_ms):
            if not np.all(np.isfinite(array)) or np.any(array < 0):
                raise UsageError("costs and staleness weights must be finite and not negative")
        if any(len(array) != length for length, arrays in lengths for array in arrays):
            raise ValueError("the arrays of a Problem do not belong together: their lengths differ")
        if np.any(self.value_producer[self.edge_value] >= self.edge_reader):
            raise ValueError("a node reads a value before it is made: the nodes are not in execution order")

    @property
    def size(self) -> int:
        return len(self.names)

    @cached_property
    def edge_producer(self) -> Ints:
        """The node that makes the value of each edge."""
        return self.value_producer[self.edge_value]

    @cached_property
    def total_ms(self) -> float:
        """The least work in one step, each shared item computed once: what a sequential step costs at speed 1."""
        return float(self.cost_ms.sum() + self.item_cost_ms.sum())

    @cached_property
    def legal_border(self) -> Bools:
        """(n+1,) whether a border may stand before node p, given the nodes that stay together."""
        covered = np.zeros(self.size + 2, dtype=np.int64)
        for members in self.units.values():
            covered[members[0] + 1] += 1
            covered[members[-1] + 1] -= 1
        return np.asarray(np.cumsum(covered)[: self.size + 1] == 0)

    @cached_property
    def units(self) -> Mapping[int, Ints]:
        """Number -> the nodes that stay together under it, in order."""
        grouped = np.flatnonzero(self.together >= 0)
        return {int(number): grouped[self.together[grouped] == number] for number in np.unique(self.together[grouped])}

    def live_bytes(self) -> Ints:
        """(n+1,) bytes of the values made before p and read at p or later: what a border before node p sends."""
        last = self.value_producer.copy()
        np.maximum.at(last, self.edge_value, self.edge_reader)
        change = np.zeros(self.size + 2, dtype=np.int64)
        np.add.at(change, self.value_producer + 1, self.value_bytes)
        np.add.at(change, last + 1, -self.value_bytes)
        return np.cumsum(change)[: self.size + 1]

    def repeated_bytes(self) -> Ints:
        """(n+1,) bytes of the shared items that are read on both sides of a border before node p."""
        first = np.full(len(self.item_bytes), self.size, dtype=np.int64)
        last = np.full(len(self.item_bytes), -1, dtype=np.int64)
        np.minimum.at(first, self.reading_item, self.reading_node)
        np.maximum.at(last, self.reading_item, self.reading_node)
        read = last >= 0
        change = np.zeros(self.size + 2, dtype=np.int64)
        np.add.at(change, first[read] + 1, self.item_bytes[read])
        np.add.at(change, last[read] + 1, -self.item_bytes[read])
        return np.cumsum(change)[: self.size + 1]


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
    )
    return Coarse(fine, marks, problem)


def _unique_pairs(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """((k, 2) distinct pairs in order, position of each given pair among them)."""
    stacked = np.stack([first, second], axis=1) if len(first) else np.zeros((0, 2), dtype=np.int64)
    pairs, inverse = np.unique(stacked, axis=0, return_inverse=True)
    return pairs.astype(np.int64), inverse.reshape(-1).astype(np.int64)


def _coarse_units(fine: Problem, run_of: Ints, count: int) -> Ints:
    """What stays together among the runs: runs that hold nodes of one unit, transitively."""
    parent = list(range(count))

    def root(run: int) -> int:
        while parent[run] != run:
            run = parent[run]
        return run

    for members in fine.units.values():
        roots = sorted({root(int(run)) for run in run_of[members]})
        for other in roots[1:]:
            parent[other] = roots[0]
    roots_of = np.array([root(run) for run in range(count)], dtype=np.int64)
    sizes = np.bincount(roots_of, minlength=count)
    return np.where(sizes[roots_of] > 1, roots_of, -1)


@dataclass(frozen=True)
class Devices:
    """The devices of one branch, one per component.

    speeds: relative to the device that the costs hold for (2 is twice as fast). memory_bytes: limit for parameters,
    activations and boundary buffers; inf for none. link_gb_per_s, latency_ms: how fast a device receives (1e9 bytes per
    second, one direction, what is really reached), and what each message costs on top.
    """

    names: tuple[str, ...]
    speeds: tuple[float, ...]
    memory_bytes: tuple[float, ...]
    link_gb_per_s: tuple[float, ...]
    latency_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        figures = (self.speeds, self.memory_bytes, self.link_gb_per_s, self.latency_ms)
        if not self.names or any(len(figure) != len(self.names) for figure in figures):
            raise UsageError(f"each of the {len(self.names)} devices needs a speed, a memory, a link and a latency")
        for name, speed, memory, link, latency in zip(self.names, *figures, strict=True):
            if not (0 < speed < math.inf and memory > 0 and link > 0 and 0 <= latency < math.inf):
                raise UsageError(
                    f"device {name}: speed, memory and link must be above zero and latency not negative; "
                    f"got speed {speed}, {memory} bytes, {link} GB/s, {latency} ms"
                )

    @classmethod
    def equal(
        cls,
        count: int,
        *,
        name: str = "device",
        speed: float = 1.0,
        memory_bytes: float = math.inf,
        link_gb_per_s: float = math.inf,
        latency_ms: float = 0.0,
    ) -> Devices:
        """``count`` devices of one kind."""
        if count < 1:
            raise UsageError(f"at least one device is needed; got {count}")
        return cls(
            (name,) * count, (speed,) * count, (memory_bytes,) * count, (link_gb_per_s,) * count, (latency_ms,) * count
        )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def kinds(self) -> tuple[tuple[int, ...], ...]:
        """Devices that are alike in every figure, by kind, in order of their first."""
        found: dict[tuple[float, ...], list[int]] = {}
        for d in range(len(self)):
            found.setdefault(self.figures(d), []).append(d)
        return tuple(tuple(members) for members in found.values())

    def figures(self, device: int) -> tuple[float, ...]:
        """Speed, memory, link and latency of a device."""
        return self.speeds[device], self.memory_bytes[device], self.link_gb_per_s[device], self.latency_ms[device]

    def receive_ms(self, device: int, size_bytes: float, messages: float) -> float:
        """Time in ms in which the device receives so many messages of so many bytes in all."""
        return messages * self.latency_ms[device] + size_bytes / (self.link_gb_per_s[device] * 1e6)

    def reordered(self, order: Sequence[int]) -> Devices:
        """The same devices in another order."""
        return Devices(
            tuple(self.names[d] for d in order),
            tuple(self.speeds[d] for d in order),
            tuple(self.memory_bytes[d] for d in order),
            tuple(self.link_gb_per_s[d] for d in order),
            tuple(self.latency_ms[d] for d in order),
        )


def step_ms(mode: Mode, load_ms: float, receive_ms: float) -> float:
    """Time of a component in one step: its load, and what of its communication that cannot hide.

    Look-ahead: what is read has had a whole step to arrive, so that receiving costs only where it takes longer than
    the computation. Async: what was sent at the end of one step is read in the next, so none of it is sure to hide.
    """
    return max(load_ms, receive_ms) if mode == "lookahead" else load_ms + receive_ms
