"""A placement worked out by hand; bounds; placements that are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.errors import UsageError
from partitioner.search.devices import Devices
from partitioner.search.evaluate import CutTensor, evaluate, lower_bound_ms
from partitioner.search.problem import Problem
from tests.support.random_problems import problems, random_devices


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


#     a(1 ms) -> b(2) -> c(3) -> d(4), a -> c and a -> d too (a's value: 10 bytes, b's 20, c's 30)
#     parameter p (100 bytes) is read by b and d; timestep item t (0.5 ms, 8 bytes) by a, b and d
HAND = Problem(
    names=("a", "b", "c", "d"),
    cost_ms=np.array([1.0, 2.0, 3.0, 4.0]),
    macs=ints(10, 20, 30, 40),
    activation_bytes=ints(5, 50, 7, 6),
    together=ints(-1, -1, -1, -1),
    light=np.zeros(4, dtype=np.bool_),
    value_names=("a", "b", "c"),
    value_producer=ints(0, 1, 2),
    value_bytes=ints(10, 20, 30),
    edge_value=ints(0, 0, 0, 1, 2),
    edge_reader=ints(1, 2, 3, 2, 3),
    edge_staleness=np.array([0.1, 0.2, 0.4, 0.8, 1.6]),
    item_cost_ms=np.array([0.0, 0.5]),
    item_macs=ints(0, 3),
    item_bytes=ints(100, 8),
    item_parameter_bytes=ints(100, 0),
    reading_item=ints(0, 0, 1, 1, 1),
    reading_node=ints(1, 3, 0, 1, 3),
)
LINKED = Devices.equal(2, link_gb_per_s=1e-5, latency_ms=0.25)  # 10 bytes per ms


def test_chain_by_hand() -> None:
    figures = evaluate(HAND, [0, 0, 1, 1], LINKED, "async")
    first, second = figures.components
    assert (first.nodes, first.pieces, first.macs, first.load_ms) == (2, 1, 33, 3.5)
    assert (second.nodes, second.pieces, second.macs, second.load_ms) == (2, 1, 73, 7.5)
    # c reads a and b, d reads a again, which has arrived: two messages, 30 bytes
    assert figures.boundaries == (CutTensor("a", 0, (1,), 10), CutTensor("b", 0, (1,), 20))
    assert (second.receive_bytes, first.send_bytes, figures.bytes_per_step) == (30, 30, 30)
    assert second.receive_ms == pytest.approx(2 * 0.25 + 3)
    assert figures.step_ms == pytest.approx(7.5 + 3.5)
    assert figures.staleness == pytest.approx(0.2 + 0.4 + 0.8)
    assert (first.parameter_bytes, second.parameter_bytes, figures.repeated_bytes) == (100, 100, 108)
    assert (first.memory_bytes, second.memory_bytes) == (108 + 50, 108 + 7 + 3 * 30)
    assert figures.compute_ms == 7.5
    assert figures.sequential_ms == 10.5
    assert figures.lower_bound_ms == 5.25
    assert figures.gap == pytest.approx(7.5 / 5.25 - 1)


def test_the_drivers_work_is_load_of_the_last_nodes_component() -> None:
    figures = evaluate(replace(HAND, driver_ms=1.0), [0, 0, 1, 1], LINKED, "async")
    first, second = figures.components
    assert (first.work_ms, first.load_ms) == (3.5, 3.5)
    assert (second.work_ms, second.load_ms, second.step_ms) == (7.5, 8.5, pytest.approx(8.5 + 3.5))
    assert (figures.compute_ms, figures.sequential_ms) == (8.5, 11.5)
    assert lower_bound_ms(replace(HAND, driver_ms=100.0), LINKED) == 104.5  # the last node's component has no less


def test_fold_by_hand() -> None:
    figures = evaluate(HAND, [1, 0, 0, 1], LINKED, "async")
    inner, outer = figures.components
    assert (outer.pieces, inner.pieces) == (2, 1)
    # a is read twice inside and counted once; a -> d stays on the outer component
    assert figures.boundaries == (CutTensor("a", 1, (0,), 10), CutTensor("c", 0, (1,), 30))
    assert figures.staleness == pytest.approx(0.1 + 0.2 + 1.6)
    assert (inner.load_ms, outer.load_ms) == (5.5, 5.5)


def test_value_read_on_two_components_counts_twice() -> None:
    figures = evaluate(HAND, [0, 1, 2, 2], Devices.equal(3), "async")
    assert figures.boundaries[0] == CutTensor("a", 0, (1, 2), 10)
    assert figures.bytes_per_step == 2 * 10 + 20
    assert figures.components[0].send_bytes == 20


def test_lookahead_has_nothing_stale_and_hides_what_arrives_within_a_step() -> None:
    figures = evaluate(HAND, [0, 0, 1, 1], LINKED, "lookahead")
    assert figures.staleness == 0
    assert figures.step_ms == 7.5
    slow = evaluate(HAND, [0, 0, 1, 1], Devices.equal(2, link_gb_per_s=1e-6), "lookahead")
    assert slow.step_ms == pytest.approx(30.0)


def test_unequal_devices() -> None:
    devices = Devices(("fast", "slow"), (2.0, 0.5), (1e3, 150.0), (float("inf"),) * 2, (0.0, 0.0))
    figures = evaluate(HAND, [0, 0, 1, 1], devices, "async")
    assert [c.load_ms for c in figures.components] == [1.75, 15.0]
    assert not figures.feasible
    swapped = evaluate(HAND, [0, 0, 1, 1], devices, "async", device_of=(1, 0))
    assert [c.load_ms for c in swapped.components] == [7.0, 3.75]
    assert swapped.lower_bound_ms == pytest.approx(10.5 / 2.5)
    assert swapped.sequential_ms == 5.25


def test_one_large_node_bounds_the_step() -> None:
    assert lower_bound_ms(HAND, Devices.equal(4)) == 4.5  # d and the item that it needs


def test_inseparable_nodes_bound_the_step_together() -> None:
    from dataclasses import replace

    assert lower_bound_ms(replace(HAND, together=ints(-1, -1, 0, 0)), Devices.equal(4)) == 7.5


@pytest.mark.parametrize(
    ("assignment", "mode", "message"),
    [
        ([0, 0, 1], "async", "4 nodes"),
        ([0, 0, 0, 0], "async", "must each have a node"),
        ([0, 0, 2, 1], "async", "must each have a node"),
        ([1, 0, 0, 1], "lookahead", "a goes from component 1 back to 0"),
    ],
)
def test_refused(assignment: list[int], mode: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(HAND, assignment, Devices.equal(2), mode)  # type: ignore[arg-type]


def test_units_must_not_be_cut() -> None:
    from dataclasses import replace

    with pytest.raises(UsageError, match="b, c share storage"):
        evaluate(replace(HAND, together=ints(-1, 0, 0, -1)), [0, 0, 1, 1], Devices.equal(2), "async")


@given(problems(), st.integers(0, 1000), st.data())
def test_figures_hang_together(problem: Problem, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, min(3, problem.size)))
    rest = data.draw(st.lists(st.integers(0, count - 1), min_size=problem.size - count, max_size=problem.size - count))
    assignment = data.draw(st.permutations([*range(count), *rest]))
    devices = random_devices(seed, count)
    figures = evaluate(problem, assignment, devices, "async")
    assert figures.step_ms >= figures.compute_ms >= figures.lower_bound_ms * (1 - 1e-12)
    assert figures.gap >= -1e-12
    assert sum(c.nodes for c in figures.components) == problem.size
    assert sum(c.receive_bytes for c in figures.components) == sum(c.send_bytes for c in figures.components)
    assert figures.bytes_per_step == sum(b.size_bytes * len(b.targets) for b in figures.boundaries)
    assert all(b.source not in b.targets for b in figures.boundaries)
    if count == 1:
        assert figures.bytes_per_step == 0
        assert figures.staleness == 0
        assert figures.repeated_bytes == 0
