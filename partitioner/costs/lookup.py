"""Costs of nodes looked up in a measured profile, by signature."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from partitioner.costs.node_costs import GraphCosts, NodeCost
from partitioner.costs.roofline import estimate
from partitioner.costs.signature import signature
from partitioner.errors import UsageError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.operator_classes import is_free, operator_class
from profiles.cost_profile import CostProfile
from profiles.device_sheets import DEFAULT_DEVICE, match_device
from profiles.json_files import JsonFileError

TELLING = 0.05  # of an operator class's estimated time


def apply_profile(profile: CostProfile, graph: TracedGraph, device_name: str | None = None) -> GraphCosts:
    """Costs of a graph's nodes, looked up in a measured profile by signature.

    Signatures that the profile lacks get their roofline, scaled for each operator class by what the nodes that were
    found took over their own roofline.

    Args:
        profile: The measured times.
        graph: The graph.
        device_name: The data sheet of the roofline; by default that of the profile's device, or of the default device.

    Returns:
        Costs whose ``covered`` is the share of the total time that was looked up. Where it is 0 they are the roofline,
        and ``source`` says so.

    Raises:
        UsageError: No device has that name.
    """
    if device_name is None:
        device_name = "cpu" if profile.device == "cpu" else match_device(profile.device_name) or DEFAULT_DEVICE
    roofline = estimate(graph, device_name).nodes
    measured: dict[str, float] = {}
    for node in graph.nodes:
        if is_free(graph, node, profile.mode):
            measured[node.name] = 0.0
        elif (found := profile.signatures.get(signature(graph, node))) is not None:
            measured[node.name] = found.median_ms
    scales = _scales(graph, measured, roofline)
    times = {
        node.name: measured.get(node.name, roofline[node.name].ms * scales[operator_class(node.target)])
        for node in graph.nodes
    }
    total = sum(times.values())
    covered = sum(measured.values()) / total if total else 0.0
    return GraphCosts(
        nodes={name: replace(roofline[name], ms=ms) for name, ms in times.items()},
        source="measured" if covered else "roofline",
        device=profile.device_name,
        covered=covered,
    )


def _scales(
    graph: TracedGraph, measured: Mapping[str, float], roofline: Mapping[str, NodeCost]
) -> defaultdict[str, float]:
    """Operator class -> measured over estimated time of its nodes that were found; for other classes that of all.

    Where those that were found are less than TELLING of a class, they say nothing of the others: in a call of other
    rows only tiny ones are the same, which take a thousand times their roofline, the time that a launch takes.
    """
    took: defaultdict[str, float] = defaultdict(float)
    expected: defaultdict[str, float] = defaultdict(float)
    whole: defaultdict[str, float] = defaultdict(float)
    for node in graph.nodes:
        kind = operator_class(node.target)
        whole[kind] += roofline[node.name].ms
        if node.name in measured:
            took[kind] += measured[node.name]
            expected[kind] += roofline[node.name].ms
    known, all_took = sum(expected.values()), sum(took.values())
    overall = all_took / known if known and known >= TELLING * sum(whole.values()) else 1.0
    scales: defaultdict[str, float] = defaultdict(lambda: overall)
    scales.update(
        {k: took[k] / expected[k] for k in took if expected[k] and took[k] and expected[k] >= TELLING * whole[k]}
    )
    return scales


def load_profile(path: str | os.PathLike[str]) -> CostProfile:
    """Read a measured profile from a file.

    Raises:
        UsageError: The file is not a cost profile.
    """
    try:
        return CostProfile.load(path)
    except JsonFileError as error:
        raise UsageError(str(error)) from error
