"""NodeCost and GraphCosts: what one call of each node of a traced graph costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Time of one call in ms, multiply-accumulates, and the bytes that it reads and writes."""

    ms: float
    macs: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class GraphCosts:
    """Costs of every node of a TracedGraph, by node name.

    source: "measured" or "roofline". covered: share of the total time that was measured (0 for a roofline).
    """

    nodes: Mapping[str, NodeCost]
    source: str
    device: str
    covered: float
