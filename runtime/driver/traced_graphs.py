"""Traced graphs that the ranks have built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from partitioner.graph.ir import TracedGraph
from runtime.worker.specs import ComponentSpec, PreambleSpec


@dataclass(frozen=True)
class BuiltGraph:
    """A traced graph that the ranks have built, under the number ``table``."""

    table: int
    graph: TracedGraph
    specs: Sequence[ComponentSpec]
    preamble_spec: PreambleSpec
