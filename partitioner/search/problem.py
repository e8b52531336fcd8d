"""Problem: what the search knows of a denoiser, as plain numbers in numpy arrays; no graph, no torch.

Legend: n nodes in execution order; values (tensors that nodes make); edges (a node reads a value); shared
items (what every component that reads it has for itself: a parameter, a timestep node, a kept prompt value).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from partitioner.errors import UsageError
from partitioner.search.arrays import Bools, Floats, Ints

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
    driver_ms: the pipeline's own work in each step (guidance, a step of the scheduler), done by the rank that has the
    last component, which is the one of the last node.
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
    driver_ms: float = 0.0

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
        for array in (self.cost_ms, self.edge_staleness, self.item_cost_ms, np.array(self.driver_ms)):
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
    def load_ms(self) -> Floats:
        """(n,) what each node adds to its component's load: its cost, and to the last node's the driver's work."""
        load = self.cost_ms.copy()
        load[-1] += self.driver_ms
        return load

    @cached_property
    def work_ms(self) -> float:
        """The least work of one call, each shared item computed once, without the driver's."""
        return float(self.cost_ms.sum() + self.item_cost_ms.sum())

    @property
    def total_ms(self) -> float:
        """What a sequential step costs at speed 1: the call's work and the driver's."""
        return self.work_ms + self.driver_ms

    @cached_property
    def largest_ms(self) -> float:
        """The largest work that cannot be cut apart: a node's or a unit's, with the shared items that it reads."""
        item_cost, own = self.item_cost_ms.tolist(), self.load_ms.tolist()
        items: list[set[int]] = [set() for _ in own]
        for item, node in zip(self.reading_item.tolist(), self.reading_node.tolist(), strict=True):
            items[node].add(item)
        largest: float = max(cost + sum(item_cost[i] for i in read) for cost, read in zip(own, items, strict=True))
        for members in self.units.values():
            read = set().union(*(items[v] for v in members))
            largest = max(largest, sum(own[v] for v in members.tolist()) + sum(item_cost[i] for i in read))
        return largest

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
