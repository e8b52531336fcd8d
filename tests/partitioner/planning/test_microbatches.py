"""Exact steps in micro-batches: when a plan has them, and what it then predicts of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from partitioner.costs.model import GivenCosts
from partitioner.costs.node_costs import GraphCosts, NodeCost
from partitioner.fleet import Device
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.plan.plan import Plan
from partitioner.planning.microbatches import parts_of
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import Planning, plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromGraphs
from tests.support.chain import ROLES, Chain, arguments

DRIVER_MS = 2.0


@cache
def graph_of(rows: int) -> TracedGraph:
    return trace(Chain().eval(), arguments(rows), ROLES)


def rows_of(graph: TracedGraph) -> int:
    return graph.input_by_name["sample"].meta.shape[0]


def proportional(rows: int) -> float:
    return float(rows)


def launches(rows: int) -> float:
    return 4.0  # whatever the rows


def planned(
    rows: int,
    parts: tuple[int, ...],
    devices: int,
    layer_ms: Callable[[int], float] = proportional,
    covered: Callable[[int], float] = lambda rows: 1.0,
    **options: object,
) -> Planning:
    """A plan whose layers cost ``layer_ms`` in a call of so many rows."""

    def costs(graph: TracedGraph) -> GraphCosts:
        count = rows_of(graph)
        free = NodeCost(0.0, 0, 0, 0)
        each = replace(free, ms=layer_ms(count))
        nodes = {node.name: each if "linear" in node.target else free for node in graph.nodes}
        return GraphCosts(nodes, "measured", "toy", covered(count))

    source = FromGraphs(graph_of(rows), tuple(map(graph_of, parts)))
    fleet = tuple(Device(f"device{n}", 1e12, 100.0, 0.0, 1.0) for n in range(devices))
    wanted = PlanOptions(**{"mode": "lookahead", "branches": 1, **options})  # type: ignore[arg-type]
    return plan(PlanRequest(source, fleet, GivenCosts(costs, "toy", driver_ms=DRIVER_MS), wanted))


def test_an_exact_step_of_two_halves_takes_three_quarters() -> None:
    found = planned(2, (1,), 2).plan
    first, last = (component.compute_ms for component in found.predicted.components)
    last -= DRIVER_MS
    assert found.microbatches == 2
    factor = ((first + last) / 2 + max(first, last) / 2 + DRIVER_MS) / (first + last + DRIVER_MS)
    assert found.predicted.exact_step_ms == pytest.approx(found.predicted.sequential_ms * factor)
    assert found.predicted.exact_step_ms < 0.8 * found.predicted.sequential_ms
    assert Plan.parse(found.document) == found


def test_as_many_parts_as_make_it_shortest() -> None:
    candidates = planned(4, (2, 1), 4, branches=None).candidates
    (chain,) = [c for c in candidates if c.branches == 1 and c.components == 4]
    assert chain.microbatches == 4  # the rows that four branches would have are traced
    (pair,) = [c for c in candidates if c.branches == 2 and c.components == 2]
    assert pair.microbatches == 2


def test_the_exact_calls_of_a_trajectory_are_counted_at_their_time() -> None:
    parts, whole = planned(2, (1,), 2).plan, planned(2, (), 2).plan
    assert whole.microbatches == 1
    assert "microbatches" not in whole.document
    assert parts.speedup(10, "DDIMScheduler", exact_share=0.5) > whole.speedup(10, "DDIMScheduler", exact_share=0.5)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(lambda: planned(2, (1,), 2, launches), id="halves take as long as the whole"),
        pytest.param(lambda: planned(2, (1,), 2, covered=lambda rows: rows - 1.0), id="halves were not measured"),
        pytest.param(lambda: planned(2, (1,), 2, mode="async"), id="async mode"),
        pytest.param(lambda: planned(2, (1,), 2, branches=2), id="one component"),
    ],
)
def test_rows_stay_together(found: Callable[[], Planning]) -> None:
    made = found().plan
    assert made.microbatches == 1
    assert made.predicted.exact_step_ms == pytest.approx(made.predicted.components[0].compute_ms) or made.components > 1


def test_a_part_takes_no_less_than_its_share_of_the_rows() -> None:
    """Another source of costs for the part must not promise more than components at the same time can give."""
    found = planned(2, (1,), 2, lambda rows: 10.0 if rows == 2 else 0.1).plan
    assert found.predicted.exact_step_ms >= 0.75 * found.predicted.sequential_ms


@pytest.mark.parametrize(("kind", "parts"), [("given", 4), ("data sheet", 2)])
def test_by_data_sheets_there_are_two_parts_at_most(kind: str, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GivenCosts, "kind", kind)
    assert planned(4, (2, 1), 2).plan.microbatches == parts


def test_parts_are_traced_where_branches_have_components() -> None:
    from partitioner.planning.branching import Branching

    assert parts_of([Branching((4,)), Branching((2, 2))], 4, (1, 2, 4), 8) == {1, 2}
    assert parts_of([Branching((8,)), Branching((4, 4))], 2, (1, 2, 4, 8), 8) == {1, 2, 4}
    assert parts_of([Branching((8,)), Branching((4, 4))], 2, (1, 2, 4, 8), 2) == {4}
    assert parts_of([Branching((12,))], 2, (1, 2, 3, 4, 6, 12), 8) == {3, 6}
    assert parts_of([Branching((2,))], 2, (2,), 8) == set()
