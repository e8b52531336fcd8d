"""What ranks do when: launches, ports, buses, broadcasts."""

from __future__ import annotations

import pytest

from partitioner.simulator.actions import Action, Await, Broadcast, Emit, EndCall, HostWork, Work, work
from partitioner.simulator.machine import FREE, Machine
from partitioner.simulator.play import play
from tests.support.simulated import BYTES_MS, META, WIRE


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
