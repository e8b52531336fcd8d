"""NodeCost and GraphCosts: what one call of each node of a traced graph costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeCost:
    """What one call of a node costs: its time in ms, multiply-accumulates, and the bytes that it reads and writes."""

    ms: float
    macs: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class GraphCosts:
    """What one call of each node of a TracedGraph costs.

    Attributes:
        nodes: Costs by node name.
        source: "measured" or "roofline".
        device: Name of the device that they hold for.
        covered: Share of the total time that was measured; 0 for a roofline.
    """

    nodes: Mapping[str, NodeCost]
    source: str
    device: str
    covered: float
