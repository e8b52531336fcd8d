"""Placements: which component has which node; the three ways in which its keys are written, each with its type.

    type              key                                  where
    ---------------   ----------------------------------   ---------------------------------------------------
    NamePlacement     name of a latent node in one graph   programs, simulator, staleness: all that has a graph
    KeyPlacement      stable key "module.path/operator.0"  the plan file, which outlives a trace
    assignment        index of a node, in an array         the search, which has no names (``Split.assignment``)

The value is always the component, 0 to N-1. ``Plan.place(graph)`` gives a NamePlacement of a plan's KeyPlacement.
"""

from __future__ import annotations

from collections.abc import Mapping

NamePlacement = Mapping[str, int]
KeyPlacement = Mapping[str, int]
