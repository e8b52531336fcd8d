"""Simulated trajectories: closed forms, causality, bounds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.graph.ir import TracedGraph
from partitioner.plan.ranks import rank_of
from partitioner.plan.schedule import Schedule
from partitioner.plan.timeline import Timeline
from partitioner.simulator.actions import Action, Await, Emit, HostWork, Work
from partitioner.simulator.machine import FREE, Link, Machine
from partitioner.simulator.play import play
from partitioner.simulator.scripts import write_scripts
from partitioner.simulator.simulate import scaled_to_components, simulate
from partitioner.simulator.speed_of_light import without_communication
from tests.support.simulated import BYTES_MS, CALLS, WIRE, chain, graph_of, named, run

Setting = tuple[TracedGraph, dict[str, int], dict[str, float], Machine, Schedule, int]


def test_one_rank_computes_one_call_after_the_other() -> None:
    played = run([3.0], "exact", machine=Machine.uniform(1, FREE, driver_ms=0.5), calls=7)
    assert played.step_ms == pytest.approx(3.5)
    assert played.trajectory_ms == pytest.approx(7 * 3.5)
    assert [played.ranks[0].compute_ms, played.ranks[0].driver_ms, played.ranks[0].idle_ms] == pytest.approx(
        [3, 0.5, 0]
    )


def test_an_exact_step_is_the_sum_of_everything_on_the_way() -> None:
    played = run([3.0, 5.0, 2.0], "exact", machine=Machine.uniform(3, WIRE, driver_ms=0.5))
    # the sample to the first component, then two boundary tensors
    assert played.step_ms == pytest.approx(3 + 5 + 2 + 0.5 + 3 * (BYTES_MS + 0.25))
    assert played.exact_step_ms == pytest.approx(played.step_ms)


@pytest.mark.parametrize(("first", "last"), [(8.0, 3.0), (3.0, 8.0), (4.0, 4.0)])
def test_an_async_step_is_its_slowest_component_or_the_round_trip(first: float, last: float) -> None:
    played = run([first, last], "async", machine=Machine.uniform(2, WIRE, driver_ms=0.5))
    # what the driver reads was computed from inputs that it sent two calls ago
    round_trip = (first + last + 0.5 + 2 * (BYTES_MS + 0.25)) / 2
    assert played.step_ms == pytest.approx(max(first, last + 0.5, round_trip))
    assert played.exact_step_ms == pytest.approx(first + last + 0.5 + 2 * (BYTES_MS + 0.25))


def test_look_ahead_costs_what_async_costs_and_fills_its_pipe_in_warm_up() -> None:
    costs = [4.0, 4.0, 4.0, 4.0]
    ahead = run(costs, "lookahead", warmup=4)
    assert ahead.step_ms == pytest.approx(4.0)
    assert ahead.step_ms == pytest.approx(run(costs, "async", warmup=4).step_ms)
    assert ahead.trajectory_ms == pytest.approx(4 * 16 + (CALLS - 4) * 4)


def test_a_period_lets_the_first_component_take_longer() -> None:
    assert run([8.0, 4.0], "async", periods=[2, 1]).step_ms == pytest.approx(4.0)
    assert run([8.0, 4.0], "async").step_ms == pytest.approx(8.0)


def test_branches_run_at_the_same_time_and_the_driver_waits_for_both() -> None:
    played = run([3.0, 5.0], "exact", branches=2, machine=Machine.uniform(4, WIRE))
    # the driver's port takes turns: the second branch's input leaves after the first one's; its result comes back
    assert played.step_ms == pytest.approx(3 + 5 + 2 * BYTES_MS + 2 * 0.25 + BYTES_MS + BYTES_MS + 0.25)
    assert run([3.0, 5.0], "async", branches=2).step_ms == pytest.approx(5.0)


def test_a_slow_device_takes_longer() -> None:
    wires = {(a, b): FREE for a in range(2) for b in range(2) if a != b}
    played = run([4.0, 4.0], "async", machine=Machine((1.0, 0.5), wires))  # rank 1 has component 0
    assert played.step_ms == pytest.approx(8.0)


def test_waits_are_told_apart() -> None:
    played = run([3.0, 5.0], "exact", machine=Machine.uniform(2, WIRE))
    driver = played.ranks[0]
    assert driver.compute_ms == pytest.approx(5)
    assert driver.communication_ms == pytest.approx(BYTES_MS + 0.25)
    assert driver.idle_ms == pytest.approx(BYTES_MS + 0.25 + 3)  # until the boundary tensor is made
    assert played.communication_share == pytest.approx(1.25 / 10.5)


def test_measured_components_replace_the_sums_of_their_nodes() -> None:
    placed = {"n0": 0, "n1": 0, "n2": 1}
    scaled = scaled_to_components({"n0": 1.0, "n1": 3.0, "n2": 2.0, "other": 9.0}, placed, [8.0, 3.0])
    assert scaled == pytest.approx({"n0": 2.0, "n1": 6.0, "n2": 3.0, "other": 9.0})
    schedule = Schedule(2, "async", 1, (1, 1))
    machine = Machine.uniform(2, FREE)
    costs = named([1, 3, 2])
    played = simulate(chain(3), placed, costs, machine, schedule, calls=CALLS, component_ms=[8, 3])
    assert played.step_ms == pytest.approx(8.0)


@st.composite
def settings(draw: st.DrawFn) -> Setting:
    """A graph in which every node leads to the result, placed at will on components of which each has a node."""
    size = draw(st.integers(2, 10))
    random = draw(st.randoms(use_true_random=False))
    reads = [[v - 1, *(random.randrange(v) for _ in range(random.randrange(3)))] if v else [] for v in range(size)]
    components = draw(st.integers(1, min(4, size)))
    others = components - 1
    places = [*range(others), *(random.randrange(components) for _ in range(size - components))]
    random.shuffle(places)
    places.append(others)
    costs = [random.randrange(50) / 10 for _ in range(size)]
    branches = draw(st.integers(1, 2))
    ranks = components * branches
    wire = Link(draw(st.sampled_from([0.0, 0.2])), draw(st.sampled_from([1.0, 10.0, 100.0])))
    speeds = tuple(draw(st.sampled_from([0.5, 1.0, 2.0])) for _ in range(ranks))
    links = Machine.uniform(ranks, wire).links
    launch_ms, driver_ms = draw(st.sampled_from([(0.0, 0.0), (0.1, 0.5), (1.0, 0.0)]))
    machine = Machine(speeds, links, draw(st.booleans()), launch_ms, driver_ms)
    mode = draw(st.sampled_from(["exact", "async", "lookahead"]))
    if mode == "lookahead":
        places.sort()
    warmup = draw(st.integers(components, components + 2))
    periods = tuple(draw(st.integers(1, 3)) if mode == "async" else 1 for _ in range(components - 1))
    schedule = Schedule(components, mode, warmup, (*periods, 1))
    placed = {f"n{v}": k for v, k in enumerate(places)}
    return graph_of(reads), placed, named(costs), machine, schedule, branches


@hypothesis.settings(max_examples=60)
@given(settings())
def test_nothing_overlaps_nothing_comes_early_and_no_bound_is_beaten(
    setting: Setting,
) -> None:
    graph, placed, costs, machine, schedule, branches = setting
    calls = 12
    scripts = write_scripts(graph, placed, costs, machine, schedule, calls=calls, branches=branches)
    timeline = play(machine, scripts)
    check_timeline(machine, scripts, timeline)
    played = simulate(graph, placed, costs, machine, schedule, calls=calls, branches=branches)
    assert played.timeline == timeline  # deterministic
    assert len(timeline.ends_ms) == calls

    loads = [0.0] * schedule.components
    for name, k in placed.items():
        loads[k] += costs[name]
    for branch in range(branches):
        for k, load in enumerate(loads):
            speed = machine.speeds[rank_of(branch, k, schedule.components)]
            # work that the last call's output cannot depend on may still go on when it is there
            due = (
                schedule.warmup
                + (calls - schedule.warmup) // schedule.periods[k]
                - schedule.components * schedule.periods[k]
            )
            assert played.trajectory_ms >= due * load / speed - 1e-6
    if schedule.mode == "exact":
        assert played.step_ms >= sum(loads) / max(machine.speeds) - 1e-6
    for rank in played.ranks:
        assert rank.compute_ms + rank.driver_ms + rank.communication_ms + rank.idle_ms <= played.step_ms + 1e-6


def check_timeline(machine: Machine, scripts: Sequence[Sequence[Action]], timeline: Timeline) -> None:
    """Replay every script against its spans and transfers: an independent reading of what must hold."""
    transfers = {}
    for rank, script in enumerate(scripts):
        sent = iter([t for t in timeline.transfers if t.source == rank])
        for action in script:
            if isinstance(action, Emit):
                for reader in action.readers:
                    transfer = next(sent)
                    assert (transfer.name, transfer.reader) == (action.name, reader)
                    transfers[action.key, reader] = transfer
    for transfer in timeline.transfers:
        wire = machine.links[transfer.source, transfer.reader]
        assert transfer.begin_ms >= transfer.sent_ms
        took = wire.latency_ms + wire.bytes_ms(transfer.size_bytes)
        assert transfer.arrived_ms == pytest.approx(transfer.begin_ms + took, abs=1e-9)
    for rank, script in enumerate(scripts):
        spans = [span for span in timeline.spans if span.rank == rank]
        for before, after in itertools.pairwise(spans):
            assert before.end_ms <= after.start_ms + 1e-9
        own = iter([span for span in spans if span.kind in ("compute", "driver")])
        now = 0.0
        for action in script:
            if isinstance(action, (Work, HostWork)):
                took = action.device_ms if isinstance(action, Work) else action.ms
                if took == 0:
                    continue
                span = next(own)
                assert span.name == action.name
                assert span.start_ms >= now - 1e-9
                assert span.end_ms >= span.start_ms + took - 1e-9
                now = span.end_ms
            elif isinstance(action, Await):
                now = max(now, transfers[action.key, rank].arrived_ms)
            elif isinstance(action, Emit):
                for reader in action.readers:
                    assert transfers[action.key, reader].sent_ms == pytest.approx(now, abs=1e-9)
        assert next(own, None) is None


@hypothesis.settings(max_examples=60)
@given(settings())
def test_free_links_and_faster_devices_never_cost_time(
    setting: Setting,
) -> None:
    graph, placed, costs, machine, schedule, branches = setting
    free = without_communication(machine)
    slow = simulate(graph, placed, costs, machine, schedule, calls=10, branches=branches)
    quick = simulate(graph, placed, costs, free, schedule, calls=10, branches=branches)
    half = {name: ms / 2 for name, ms in costs.items()}
    quicker = simulate(graph, placed, half, free, schedule, calls=10, branches=branches)
    assert quicker.trajectory_ms <= quick.trajectory_ms + 1e-6
    assert quick.trajectory_ms <= slow.trajectory_ms + 1e-6
