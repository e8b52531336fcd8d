"""The simulator: closed forms, causality, bounds, and traces that can be read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.baselines.asyncdiff_simulation import simulate_asyncdiff
from partitioner.graph.ir import Input, Node, Ref, Role, TensorMeta, TracedGraph
from partitioner.plan.ranks import rank_of
from partitioner.plan.schedule import Schedule
from partitioner.plan.timeline import Timeline, chrome_trace, write_trace
from partitioner.simulator.actions import Action, Await, Broadcast, Emit, EndCall, HostWork, Work, work
from partitioner.simulator.machine import FREE, Link, Machine
from partitioner.simulator.play import play
from partitioner.simulator.scripts import write_scripts
from partitioner.simulator.simulate import Simulation, scaled_to_components, simulate
from partitioner.simulator.speed_of_light import speed_of_light, without_communication
from profiles.json_files import JsonFileError

META = TensorMeta((1000, 1000), (1000, 1), "float32")  # 4 MB
WIRE = Link(0.25, 4.0)  # 4 MB take 1 ms
BYTES_MS = 1.0
CALLS = 40


def graph_of(reads: Sequence[Sequence[int]]) -> TracedGraph:
    """Node v reads the nodes reads[v]; those without any read the sample. One module per node."""
    nodes = tuple(
        Node(
            name=f"n{v}",
            key=f"m{v}/add.0",
            target="aten.add.Tensor",
            args=tuple(Ref(f"n{u}") for u in own) or (Ref("sample"),),
            kwargs=(),
            module=f"m{v}",
            role=Role.LATENT,
            outputs=(META,),
        )
        for v, own in enumerate(reads)
    )
    return TracedGraph("test", "Test", (Input("sample", META, Role.LATENT),), (), (), nodes, (Ref(nodes[-1].name),))


def chain(length: int) -> TracedGraph:
    return graph_of([[v - 1] if v else [] for v in range(length)])


def run(
    costs: Sequence[float],
    mode: str,
    *,
    machine: Machine | None = None,
    warmup: int = 1,
    periods: Sequence[int] | None = None,
    branches: int = 1,
    calls: int = CALLS,
) -> Simulation:
    """A chain with one node per component."""
    count = len(costs)
    machine = machine or Machine.uniform(count * branches, FREE)
    schedule = Schedule(count, mode, warmup, tuple(periods or [1] * count))
    graph = chain(count)
    placed = {f"n{k}": k for k in range(count)}
    return simulate(graph, placed, named(costs), machine, schedule, calls=calls, branches=branches)


def named(costs: Sequence[float]) -> dict[str, float]:
    return {f"n{v}": ms for v, ms in enumerate(costs)}


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


@pytest.mark.parametrize(("launch", "expected"), [(0.1, 4.1), (2.0, 8.0 + 1.0)])
def test_launches_hide_behind_long_kernels_and_show_between_short_ones(launch: float, expected: float) -> None:
    script = [work("nodes", [1.0, 0.0, 1.0, 1.0, 1.0], launch)]  # a view is not launched
    assert play(Machine((1.0,), {}), [[*script, EndCall(0)]]).ends_ms == pytest.approx((expected,))


def test_a_host_that_runs_ahead_hides_its_launches() -> None:
    twice: list[Action] = [work("first", [5.0], 1.0), work("second", [1.0] * 3, 1.0), EndCall(0)]
    assert play(Machine((1.0,), {}), [twice]).ends_ms == pytest.approx((1 + 5 + 3,))
    waits: list[Action] = [twice[0], HostWork("reads the result", 0.0), *twice[1:]]
    assert play(Machine((1.0,), {}), [waits]).ends_ms == pytest.approx((1 + 5 + 1 + 3,))


def test_a_broadcast_blocks_everyone_and_flows_around_the_ring() -> None:
    machine = Machine.uniform(3, WIRE)
    scripts: list[list[Action]] = [[Work("w", ms), Broadcast("b", "b", META.size_bytes, 0)] for ms in (1.0, 4.0, 2.0)]
    scripts[0].append(EndCall(0))
    timeline = play(machine, scripts)
    assert timeline.ends_ms == pytest.approx((4 + BYTES_MS + 2 * 0.25,))
    assert {transfer.reader for transfer in timeline.transfers} == {1, 2}


def test_transfers_take_turns_at_a_port_and_on_a_bus() -> None:
    size = META.size_bytes
    scripts: list[list[Action]] = [
        [Emit("a", "a", size, (2,))],
        [Emit("b", "b", size, (3,))],
        [Await("a")],
        [Await("b")],
    ]
    own = play(Machine.uniform(4, WIRE), scripts)
    assert [t.arrived_ms for t in own.transfers] == pytest.approx([1.25, 1.25])
    bus = play(Machine.uniform(4, WIRE, shared_bus=True), scripts)
    assert sorted(t.arrived_ms for t in bus.transfers) == pytest.approx([1.25, 2.25])
    fan: list[list[Action]] = [[Emit("a", "a", size, (1, 2))], [Await("a")], [Await("a")]]
    assert sorted(t.arrived_ms for t in play(Machine.uniform(3, WIRE), fan).transfers) == pytest.approx([1.25, 2.25])


def test_ranks_that_wait_for_each_other_are_named() -> None:
    with pytest.raises(ValueError, match=r"rank 0 at Await.*rank 1 at Await"):
        play(Machine.uniform(2, FREE), [[Await("a")], [Await("b"), Emit("a", "a", 0, (0,))]])


def test_a_machine_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="1 x 2 ranks need as many devices; the machine has 3"):
        run([1.0, 1.0], "exact", machine=Machine.uniform(3, FREE))


# ---- AsyncDiff


Setting = tuple[TracedGraph, dict[str, int], dict[str, float], Machine, Schedule, int]

MODULES = [["m0"], ["m1"], ["m2"]]
COSTS = {"n0": 3.0, "n1": 5.0, "n2": 4.0, "n3": 0.5}  # n3 is in no module: every rank computes it


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("warmup", [1, 2, 3])
def test_asyncdiff_blocks_on_every_modules_output(stride: int, warmup: int) -> None:
    ranks = 3 + stride - 1
    machine = Machine.uniform(ranks, WIRE, driver_ms=0.1)
    played = simulate_asyncdiff(chain(4), MODULES, COSTS, machine, calls=101, stride=stride, warmup=warmup)
    broadcast = BYTES_MS + (ranks - 1) * 0.25
    assert played.step_ms == pytest.approx((3 * broadcast + 5 + broadcast) / stride + 0.5 + 0.1)
    assert played.exact_step_ms == pytest.approx(12.5 + 0.1)
    computing = [rank.compute_ms for rank in played.ranks]
    own = [3.0, 5.0, 4.0, 4.0][:ranks]
    assert computing == pytest.approx([ms / stride + 0.5 for ms in own])


def test_asyncdiff_needs_a_rank_more_for_stride_two() -> None:
    with pytest.raises(ValueError, match="one more with 2"):
        simulate_asyncdiff(chain(4), MODULES, COSTS, Machine.uniform(3, WIRE), calls=10, stride=2)


# ---- what holds for every graph, placement and machine


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
def test_free_wires_and_faster_devices_never_cost_time(
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


# ---- where the time goes, and the trace


def test_speed_of_light_names_each_loss() -> None:
    machine = Machine.uniform(2, Link(0.0, 1.0), driver_ms=0.0)  # a tensor takes 4 ms
    played = run([6.0, 4.0], "async", machine=machine)
    unhindered = run([6.0, 4.0], "async", machine=without_communication(machine))
    light = speed_of_light(played, unhindered, machine, sequential_ms=10.0)
    assert light.ideal == 2.0
    assert light.balanced == pytest.approx(10 / 6)
    assert light.connected == pytest.approx(10 / 9)  # the round trip: (6 + 4 + 4 + 4) / 2
    assert light.remaining < light.connected
    assert str(light) == "ideal 2.00 x, balance leaves 1.67 x, communication 1.11 x, warm-up 1.09 x over 40 steps"


def test_a_trace_has_a_row_per_rank_and_an_arrow_per_transfer(tmp_path: Path) -> None:
    played = run([3.0, 5.0], "async", machine=Machine.uniform(2, WIRE), calls=4)
    path = tmp_path / "rank.pt.trace.json"
    write_trace(path, chrome_trace(played.timeline, ["component 1", "component 0"], source="simulated"))
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["otherData"] == {"source": "simulated"}
    events = document["traceEvents"]
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["component 1", "component 0"]
    calls = [e for e in events if e["name"].startswith("ProfilerStep#")]
    assert [e["ts"] + e["dur"] for e in calls] == pytest.approx([1e3 * end for end in played.timeline.ends_ms])
    spans = [e for e in events if e["ph"] == "X" and "kind" in e.get("args", {})]
    assert len(spans) == len(played.timeline.spans)
    assert sum(e["dur"] for e in spans if e["args"]["kind"] == "compute" and e["pid"] == 0) == pytest.approx(4 * 5000)
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert len(starts) == len(ends) == len(played.timeline.transfers)
    for number, end in ends.items():
        assert starts[number]["pid"] != end["pid"]
        assert end["tid"] == 1 + end["pid"]
        assert starts[number]["ts"] + 1250 <= end["ts"]
    with pytest.raises(JsonFileError):
        write_trace(path, document)
