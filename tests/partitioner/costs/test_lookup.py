"""Costs looked up in a profile, and what the profile lacks scaled by operator class."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from partitioner.costs.lookup import apply_profile, load_profile
from partitioner.costs.measure import distinct_calls
from partitioner.costs.roofline import estimate
from partitioner.costs.signature import signature
from partitioner.errors import UsageError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.operator_classes import operator_class
from profiles.cost_profile import CostProfile, SignatureCost
from tests.support.graphs import full_graph, small_graph


def made_profile(graph: TracedGraph, scale: float, kinds: set[str]) -> CostProfile:
    """A profile that covers operator classes ``kinds``, each taking ``scale`` times its roofline on a CPU."""
    roofline = estimate(graph, "cpu").nodes
    return CostProfile(
        schema_version=1,
        device="cpu",
        device_name="made up",
        clock_mhz=None,
        versions={},
        dtype="float32",
        mode="eager",
        date="",
        command="",
        signatures={
            text: SignatureCost(median_ms=scale * roofline[node.name].ms, iqr_ms=0, launch_ms=0)
            for text, node in distinct_calls(graph, "eager").items()
            if operator_class(node.target) in kinds
        },
    )


EVERYTHING = {"conv", "matmul", "attention", "memory"}


@pytest.mark.slow
def test_full_profile_is_looked_up() -> None:
    graph = small_graph("dit-like")
    roofline = estimate(graph, "cpu")
    costs = apply_profile(made_profile(graph, 3.0, EVERYTHING), graph)
    assert (costs.source, costs.device) == ("measured", "made up")
    assert costs.covered == pytest.approx(1.0)
    for name, cost in costs.nodes.items():
        assert cost.ms == pytest.approx(3 * roofline.nodes[name].ms)
        assert dataclasses.replace(cost, ms=0) == dataclasses.replace(roofline.nodes[name], ms=0)


@pytest.mark.slow
def test_profile_of_one_model_serves_another() -> None:
    profile = made_profile(full_graph("sd21"), 1.0, EVERYTHING)
    costs = apply_profile(profile, full_graph("sd15"))
    assert 0 < costs.covered < 1


def test_uncovered_signatures_are_scaled_by_their_class() -> None:
    """Half of the matmuls are covered and take 4 times their roofline: so do the others; other classes take 4 times."""
    graph = small_graph("dit-like")
    full = made_profile(graph, 4.0, {"matmul"})
    texts = sorted(full.signatures)
    half = full.model_copy(update={"signatures": {text: full.signatures[text] for text in texts[::2]}})
    costs = apply_profile(half, graph)
    roofline = estimate(graph, "cpu")
    for name, cost in costs.nodes.items():
        assert cost.ms == pytest.approx(4 * roofline.nodes[name].ms)
    looked_up = sum(costs.nodes[n.name].ms for n in graph.nodes if signature(graph, n) in half.signatures)
    assert costs.covered == pytest.approx(looked_up / sum(cost.ms for cost in costs.nodes.values()))


def test_classes_are_scaled_apart() -> None:
    graph = small_graph("dit-like")
    two = made_profile(graph, 4.0, {"matmul"})
    memory = made_profile(graph, 0.5, {"memory"}).signatures
    some = dict(sorted(memory.items())[::2])
    costs = apply_profile(two.model_copy(update={"signatures": two.signatures | some}), graph)
    roofline = estimate(graph, "cpu")
    ratio = Counter(
        round(costs.nodes[n.name].ms / roofline.nodes[n.name].ms, 6)
        for n in graph.nodes
        if operator_class(n.target) == "memory" and roofline.nodes[n.name].ms
    )
    assert set(ratio) == {0.5}


def test_profile_that_covers_nothing_is_a_roofline() -> None:
    graph = small_graph("dit-like")
    costs = apply_profile(made_profile(graph, 1.0, set()), graph, "a5000")
    assert (costs.source, costs.covered) == ("roofline", 0.0)
    assert costs.nodes == estimate(graph, "a5000").nodes


def test_unreadable_profile_is_a_usage_error(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match=r"missing\.json cannot be read"):
        load_profile(tmp_path / "missing.json")


def test_what_little_was_found_says_nothing_of_the_rest() -> None:
    """In a call of other rows a few tiny operators are the same; they take as long as a launch, not their roofline."""
    graph = small_graph("dit-like")
    roofline = estimate(graph, "cpu").nodes
    profile = made_profile(graph, 1.0, EVERYTHING)
    smallest = min(distinct_calls(graph, "eager").items(), key=lambda call: roofline[call[1].name].ms)[0]
    only = {smallest: profile.signatures[smallest].model_copy(update={"median_ms": 5.0})}
    costs = apply_profile(profile.model_copy(update={"signatures": only}), graph)
    others = [name for name, cost in costs.nodes.items() if cost.ms and cost.ms != 5.0]
    assert others
    assert all(costs.nodes[name].ms == pytest.approx(roofline[name].ms) for name in others)
