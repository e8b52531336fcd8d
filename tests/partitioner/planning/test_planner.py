"""The planner on a small chain whose costs are known: what it considers, chooses, predicts and refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.costs.model import ComponentTimer, GivenCosts
from partitioner.costs.node_costs import GraphCosts, NodeCost
from partitioner.errors import InfeasibleError, UsageError
from partitioner.fleet import Device, Fleet
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.plan.ranks import rank_of
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import Planning, plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromGraphs
from tests.support.chain import LAYERS, ROLES, WIDTH, Chain, arguments


class Skipping(Chain):
    """The same between two wide layers, of which the last also reads what the first made."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Linear(WIDTH, 64 * WIDTH)
        self.contract = nn.Linear(64 * WIDTH, WIDTH)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        wide = self.expand(sample)
        narrow = super().forward(self.contract(wide), timestep)
        return self.contract(wide * self.expand(narrow))


@pytest.fixture(scope="module")
def graphs() -> tuple[TracedGraph, TracedGraph]:
    """The graphs of a full call with two rows and of one half of it."""
    module = Chain().eval()
    return trace(module, arguments(2), ROLES), trace(module, arguments(1), ROLES)


def costs_of(graph: TracedGraph) -> GraphCosts:
    """1 ms a row for each layer, nothing for the rest."""
    rows = graph.input_by_name["sample"].meta.shape[0]

    def cost(target: str) -> NodeCost:
        return NodeCost(ms=float(rows), macs=10 * rows, read_bytes=0, write_bytes=0) if "linear" in target else free

    free = NodeCost(0.0, 0, 0, 0)
    return GraphCosts({node.name: cost(node.target) for node in graph.nodes}, "roofline", "toy", 0.0)


def fleet_of(*speeds: float, memory: float = 1e12, link: float = 100.0, latency: float = 0.0) -> Fleet:
    return tuple(Device(f"speed{speed:g}", memory, link, latency, speed) for speed in speeds)


def plan_for(
    graphs: tuple[TracedGraph, *tuple[TracedGraph | None, ...]],
    fleet: Fleet | None = None,
    *,
    timer: ComponentTimer | None = None,
    driver_ms: float = 0.0,
    calls: int = 1,
    **options: Any,
) -> Planning:
    costs = GivenCosts(costs_of, "toy", driver_ms=driver_ms, timer=timer)
    wanted = PlanOptions(refine=timer is not None, **options)
    whole, *parts = graphs
    source = FromGraphs(whole, tuple(part for part in parts if part is not None), calls)
    return plan(PlanRequest(source, fleet or fleet_of(1, 1, 1, 1), costs, wanted))


def shape_of(planning: Planning) -> tuple[int, int]:
    return planning.plan.branches, planning.plan.components


def test_exact_branches_come_first_and_every_candidate_is_listed(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    planning = plan_for(graphs)
    assert shape_of(planning) == (2, 2)
    assert [(c.branches, c.components, c.mode, c.reason) for c in planning.candidates] == [
        (1, 4, "lookahead", None), (1, 4, "async", None), (1, 3, "lookahead", None), (1, 2, "lookahead", None),
        (2, 2, "lookahead", None), (2, 2, "async", None), (2, 1, "lookahead", None),
    ]  # fmt: skip
    assert planning.plan.mode == "lookahead"
    for c in planning.candidates:
        assert (c.evaluation.staleness > 0) == c.is_stale == (c.mode == "async")
    assert planning.plan.fingerprint == graphs[1].fingerprint
    assert planning.plan.inputs[0].shape == (1, WIDTH)
    planning.plan.check(graphs[1])


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (1, {}, (1, 1)),
        (2, {}, (2, 1)),
        (3, {}, (1, 3)),
        (4, {"branches": 1}, (1, 4)),
        (5, {"branches": 2}, (2, 2)),
        (5, {}, (2, 2)),
        (8, {}, (2, 4)),
        (4, {"mode": "async"}, (2, 2)),
        (4, {"period": 2}, (2, 2)),
        (3, {"prefer": "speed"}, (1, 3)),
    ],
)
def test_what_is_chosen(
    graphs: tuple[TracedGraph, TracedGraph], count: int, options: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert shape_of(plan_for(graphs, fleet_of(*[1] * count), **options)) == expected


def test_each_mode_can_be_asked_for(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    for mode in ("lookahead", "async"):
        planning = plan_for(graphs, mode=mode)
        assert planning.plan.mode == mode
        assert {c.mode for c in planning.candidates} == {mode}


def test_what_is_new_at_every_step_leaves_async_mode_only() -> None:
    graph = trace(Chain().eval(), arguments(2), {**ROLES, "timestep": "step"})
    assert plan_for((graph, None)).plan.mode == "async"
    assert plan_for((graph, None), mode="lookahead").plan.mode == "lookahead"


def test_speed_takes_the_fastest_candidate_and_quality_one_that_is_not_stale() -> None:
    """A fold keeps a long skip connection on one device, which no balanced chain can."""
    graph = trace(Skipping().eval(), arguments(2), ROLES)
    slow = fleet_of(1, 1, link=1e-4)  # 41 ms for what is skipped, 0.64 ms for what a layer makes
    quality, speed = (plan_for((graph, None), slow, prefer=prefer) for prefer in ("quality", "speed"))
    assert quality.plan.mode == "lookahead"
    assert speed.plan.mode == "async"
    assert speed.chosen.step_ms == min(c.step_ms for c in speed.candidates) < quality.chosen.step_ms


def test_unequal_devices_may_be_left_idle_the_slowest_first(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    planning = plan_for((graphs[0], None), fleet_of(1, 0.01, 2), prefer="speed")
    assert {c.components: c.device_of for c in planning.candidates if c.mode == "lookahead"}[2] in {(0, 2), (2, 0)}


def test_without_a_guidance_batch_there_is_one_branch(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    assert shape_of(plan_for((graphs[0], None))) == (1, 4)
    with pytest.raises(UsageError, match="has one branch"):
        plan_for((graphs[0], None), branches=2)


def test_memory_prefers_what_holds_the_least_on_one_device(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    planning = plan_for(graphs, prefer="memory")
    assert planning.chosen.memory_bytes == min(c.memory_bytes for c in planning.candidates)


def test_predicted_figures(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    predicted = plan_for(graphs).plan.predicted
    embed = 2.0  # the timestep's own layer, which each component computes for itself
    assert predicted.sequential_ms == 2 * LAYERS + embed
    assert predicted.step_ms == LAYERS / 2 + embed / 2
    assert predicted.exact_step_ms == LAYERS + embed / 2
    assert predicted.speedup_step == pytest.approx(predicted.sequential_ms / predicted.step_ms)
    assert predicted.lower_bound_ms == (LAYERS + embed / 2) / 2
    assert predicted.bytes_per_step == 2 * WIDTH * 4
    assert predicted.macs == 20 * (LAYERS + 1)
    assert len(predicted.components) == 4
    for number, component in enumerate(predicted.components):
        embedding = 2 * WIDTH if number == 1 else 0  # the driver's, which has the last component of branch 0
        assert component.parameters == LAYERS / 2 * (WIDTH * WIDTH + WIDTH) + embedding
        assert component.parameter_bytes == 4 * component.parameters
        assert component.memory_bytes > component.parameter_bytes


@pytest.mark.parametrize("count", [2, 3, 4, 6, 8])
def test_components_are_balanced(graphs: tuple[TracedGraph, TracedGraph], count: int) -> None:
    for branches in (1, 2):
        loads = [
            c.compute_ms for c in plan_for(graphs, fleet_of(*[1] * count), branches=branches).plan.predicted.components
        ]
        assert max(loads) <= 1.05 * sum(loads) / len(loads)


def test_unequal_devices_get_what_they_can_do(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    plan = plan_for((graphs[0], None), fleet_of(1, 3, 1)).plan
    assert sorted(plan.devices) == ["speed1", "speed1", "speed3"]
    for k in range(3):
        share = sum(component == k for component in plan.placement.values()) / len(plan.placement)
        fast = plan.devices[rank_of(0, k, 3)] == "speed3"
        assert share == pytest.approx(0.6 if fast else 0.2, abs=0.07)
    loads = [component.compute_ms for component in plan.predicted.components]
    assert max(loads) <= 1.15 * min(loads)


@pytest.mark.parametrize(
    ("count", "calls", "options", "expected"),
    [
        (2, 2, {}, (2, 2, 1)),
        (3, 2, {}, (1, 1, 3)),
        (4, 2, {}, (2, 2, 2)),
        (4, 2, {"branches": 1}, (1, 1, 4)),
        (2, 4, {}, (2, 2, 1)),
        (3, 3, {}, (3, 3, 1)),
        (4, 4, {}, (4, 4, 1)),
    ],
)
def test_the_calls_of_a_step_have_branches_of_their_own(
    graphs: tuple[TracedGraph, TracedGraph], count: int, calls: int, options: dict[str, Any], expected: tuple[int, ...]
) -> None:
    plan = plan_for((graphs[1],), fleet_of(*[1] * count), calls=calls, **options).plan
    assert (plan.streams, plan.branches, plan.components) == expected
    assert (plan.calls_per_step, plan.branch_rows, plan.rows_of_branches) == (calls, (), [1])


def test_times_are_of_all_calls_of_a_step(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    call, driver = LAYERS + 1.0, 4.0
    whole, apart = (
        plan_for((graphs[1],), fleet_of(*[1] * count), calls=2, driver_ms=driver, branches=count).plan
        for count in (1, 2)
    )
    figures = apart.predicted
    assert whole.predicted.step_ms == whole.predicted.sequential_ms == figures.sequential_ms == 2 * call + driver
    assert figures.step_ms == figures.exact_step_ms == figures.lower_bound_ms == call + driver
    assert [component.compute_ms for component in figures.components] == [call + driver, call]
    assert figures.macs == whole.predicted.macs == 10 * (LAYERS + 1), "one call"
    # nothing is foreseen in the first step, which makes one call after the other
    first = 2 * (call + driver)
    assert apart.speedup(50) == pytest.approx(50 * (2 * call + driver) / (first + 49 * (call + driver)), rel=1e-6)
    chain = plan_for((graphs[1],), fleet_of(1, 1, 1, 1), calls=2, branches=2).plan.predicted
    assert chain.bytes_per_step == 2 * WIDTH * 4 == sum(component.send_bytes for component in chain.components)
    by_turns = plan_for((graphs[1],), fleet_of(1, 1), calls=3, branches=2).plan.predicted
    assert (by_turns.sequential_ms, by_turns.step_ms) == (3 * call, 2 * call)
    assert [component.compute_ms for component in by_turns.components] == [2 * call, call]


def test_streams_and_rows_are_shared_together(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    planning = plan_for(graphs, calls=2)
    plan = planning.plan
    assert (plan.branches, plan.streams, plan.components, plan.inputs[0].shape) == (4, 2, 1, (1, WIDTH))
    assert plan.predicted.speedup_step == pytest.approx(4.0)
    ways = [(c.branching.streams, c.branching.rows) for c in planning.candidates if c.components == 1]
    assert ways == [(1, (1, 1)), (2, (2,)), (2, (1, 1))]
    two = plan_for(graphs, fleet_of(1, 1), calls=2).plan
    assert (two.branches, two.streams) == (2, 1), "rows need no call to be foreseen"


def test_unequal_devices_have_rows_by_their_speed(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    shares = tuple(trace(Chain().eval(), arguments(rows), ROLES) for rows in (8, 4, 5, 3))
    planning = plan_for(shares, fleet_of(3, 5))
    plan = planning.plan
    assert (plan.branches, plan.components, plan.branch_rows, plan.devices) == (2, 1, (5, 3), ("speed5", "speed3"))
    assert plan.inputs[0].shape == (5, WIDTH)
    assert plan.predicted.step_ms == plan.predicted.exact_step_ms == LAYERS + 1
    assert [component.compute_ms for component in plan.predicted.components] == [LAYERS + 1, LAYERS + 1]
    assert [component.macs for component in plan.predicted.components] == [50 * (LAYERS + 1), 30 * (LAYERS + 1)]
    assert plan.predicted.speedup_step == pytest.approx(8 / 5)
    assert planning.chosen.step_ms == min(c.step_ms for c in planning.candidates if c.components == 1)
    streams = plan_for(shares, fleet_of(3, 5, 5, 3), calls=2).plan
    assert (streams.branches, streams.streams, streams.branch_rows) == (4, 2, (5, 3))
    assert streams.devices == ("speed5", "speed3", "speed5", "speed3")


def test_branches_pair_devices_of_like_speed(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    plan = plan_for(graphs, fleet_of(1, 3, 1, 3), branches=2).plan
    for k in range(2):
        assert plan.devices[rank_of(0, k, 2)] == plan.devices[rank_of(1, k, 2)]
    assert sorted(plan.devices) == ["speed1", "speed1", "speed3", "speed3"]


def test_a_plan_slower_than_one_device_is_refused_unless_forced(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    slow = fleet_of(1, 1, latency=500.0)
    with pytest.raises(InfeasibleError, match="--force"):
        plan_for((graphs[0], None), slow)
    planning = plan_for((graphs[0], None), slow, force=True)
    assert planning.plan.predicted.speedup_step < 1


def test_a_slower_plan_is_made_where_one_device_is_too_small(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    small = fleet_of(1, 1, latency=500.0, memory=6000.0)
    assert shape_of(plan_for((graphs[0], None), small)) == (1, 2)


def test_too_little_memory_is_refused_with_numbers(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    with pytest.raises(InfeasibleError, match="GB"):
        plan_for(graphs, memory_limit_bytes=100.0)


@pytest.mark.parametrize("mode", ["lookahead", "async"])
def test_what_is_planned_fits_with_all_of_its_messages(mode: Any) -> None:
    """The search counts less of messages than there is: a split that fits only so is not taken."""
    module = Skipping().eval()
    graph = trace(module, arguments(2), ROLES)
    free = plan_for((graph, None), fleet_of(1, 1), mode=mode, force=True).chosen
    most = free.memory_bytes
    for limit in (most, most - 1, most - 64, 0.95 * most, 0.9 * most):
        with contextlib.suppress(InfeasibleError):
            chosen = plan_for((graph, None), fleet_of(1, 1, memory=limit), mode=mode, force=True).chosen
            assert chosen.components == 1 or chosen.memory_bytes <= limit


def test_more_devices_than_parts_is_refused(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    with pytest.raises(InfeasibleError, match="fewer devices"):
        plan_for((graphs[0], None), fleet_of(*[1] * 200))


def test_a_period_gives_the_inner_components_more_work(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    plan = plan_for((graphs[0], None), fleet_of(1, 1, 1), period=2).plan
    assert (plan.period, plan.periods, plan.mode) == (2, (2, 2, 1), "async")
    loads = [component.compute_ms for component in plan.predicted.components]
    assert plan.predicted.step_ms >= max(loads[0] / 2, loads[1] / 2, loads[2])
    assert plan.predicted.speedup_step > 4


def test_refining_moves_the_borders_to_where_time_is_really_spent(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    graph = graphs[0]
    first_half = {node.name for node in graph.latent_nodes[: len(graph.latent_nodes) // 2]}

    def timer(timed: TracedGraph, placed: Mapping[str, int], components: int) -> list[float]:
        """Really the first half of the layers takes twice as long as their costs say."""
        times = [0.0] * components
        for node in timed.latent_nodes:
            ms = costs_of(timed).nodes[node.name].ms
            times[placed[node.name]] += 2 * ms if node.name in first_half else ms
        return times

    planning = plan_for((graph, None), fleet_of(1, 1), timer=timer)
    assert planning.refinement is not None
    rounds = planning.refinement.rounds
    assert rounds[0].error == pytest.approx(0.5)
    assert rounds[-1].error < 0.12
    really = timer(graph, planning.chosen.placed, 2)
    best = rounds[planning.refinement.best]
    assert list(best.measured_ms) == really
    assert best.slowest == pytest.approx(2 * max(really) / sum(really)) == min(taken.slowest for taken in rounds)
    assert best.slowest <= 1.1
    assert planning.chosen.compute_ms == pytest.approx(max(really), rel=0.1)  # timestep nodes on top
    assert planning.plan.predicted.sequential_ms == pytest.approx(sum(really), rel=0.1)
    unrefined = timer(graph, plan_for((graph, None), fleet_of(1, 1)).chosen.placed, 2)
    assert max(really) < max(unrefined)


def test_refining_ends_when_the_components_are_even(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    calls = []

    def timer(timed: TracedGraph, placed: Mapping[str, int], components: int) -> list[float]:
        calls.append(placed)
        return [1.0, 1.019]

    planning = plan_for((graphs[0], None), fleet_of(1, 1), timer=timer)
    assert len(calls) == 1
    assert planning.refinement is not None
    assert planning.refinement.rounds[0].slowest == pytest.approx(1.019 / 1.0095)


def test_refining_ends_when_nothing_improves_and_takes_the_best_that_was_measured(
    graphs: tuple[TracedGraph, TracedGraph],
) -> None:
    calls: list[Mapping[str, int]] = []

    def timer(timed: TracedGraph, placed: Mapping[str, int], components: int) -> list[float]:
        """Any other split than the first turns out worse."""
        calls.append(placed)
        return [20.0, 30.0] if len(calls) == 1 else [35.0, 30.0]

    planning = plan_for((graphs[0], None), fleet_of(1, 1), timer=timer)
    assert planning.refinement is not None
    assert (len(calls), planning.refinement.best) == (2, 0)
    assert calls[0] != calls[1]
    assert planning.chosen.placed == calls[0]
    assert planning.chosen.compute_ms == pytest.approx(30.0, rel=0.1)  # timestep nodes on top


def test_refining_weighs_components_by_the_speed_of_their_device(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    def timer(timed: TracedGraph, placed: Mapping[str, int], components: int) -> list[float]:
        """The costs are right."""
        times = [0.0] * components
        for node in timed.latent_nodes:
            times[placed[node.name]] += costs_of(timed).nodes[node.name].ms
        return times

    planning = plan_for((graphs[0], None), fleet_of(3, 1), timer=timer)
    assert planning.refinement is not None
    (only,) = planning.refinement.rounds
    assert max(only.measured_ms) > 2 * min(only.measured_ms)
    assert 1.0 <= only.slowest < 1.3


def test_a_proof_bounds_the_step(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    pytest.importorskip("highspy")
    certificate = plan_for((graphs[0], None), fleet_of(1, 1), prove=True).certificate
    assert certificate is not None
    assert certificate.bound_ms <= certificate.step_ms
    assert certificate.gap < 0.05


def test_the_same_input_gives_the_same_bytes(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    assert plan_for(graphs).plan.canonical == plan_for(graphs).plan.canonical


def test_two_branches_need_two_devices(graphs: tuple[TracedGraph, TracedGraph]) -> None:
    with pytest.raises(UsageError, match="2 branches need 2 devices"):
        plan_for(graphs, fleet_of(1), branches=2)
