"""What Solver.solve promises of any split: properties, awkward graphs, unequal devices, memories, refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioner.errors import InfeasibleError, UsageError
from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate
from partitioner.search.mode import Mode
from partitioner.search.problem import Problem
from partitioner.search.solver import Solver
from partitioner.search.split import Split
from tests.support.random_problems import brute_force, is_fold, problems, random_problem

MODES = st.sampled_from(["lookahead", "async"])
FEW = settings(max_examples=60)


def chain(costs: list[float], size_bytes: int = 10) -> Problem:
    """A chain of nodes with a parameter of 100 bytes each."""
    n = len(costs)
    return replace(
        random_problem(0, size=n),
        cost_ms=np.array(costs, dtype=np.float64),
        activation_bytes=np.full(n, 5),
        value_names=tuple(f"n{v}" for v in range(n - 1)),
        value_producer=np.arange(n - 1),
        value_bytes=np.full(n - 1, size_bytes),
        edge_value=np.arange(n - 1),
        edge_reader=np.arange(1, n),
        edge_staleness=np.ones(n - 1),
        item_cost_ms=np.zeros(n),
        item_macs=np.zeros(n, dtype=np.int64),
        item_bytes=np.full(n, 100),
        item_parameter_bytes=np.full(n, 100),
        reading_item=np.arange(n),
        reading_node=np.arange(n),
        driver_ms=0.0,
    )


def try_to_solve(problem: Problem, devices: Devices, mode: Mode, **options: float) -> Split | None:
    try:
        return Solver(problem).solve(devices, mode, **options)
    except InfeasibleError:
        return None


@FEW
@given(problems(), st.integers(1, 4), MODES, st.sampled_from([0.0, 0.01, 0.3]))
def test_split_is_what_it_claims(problem: Problem, count: int, mode: Mode, epsilon: float) -> None:
    devices = Devices.equal(count, link_gb_per_s=1e-5)
    split = try_to_solve(problem, devices, mode, epsilon=epsilon)
    if split is None:
        assert count > problem.size
        return
    again = evaluate(problem, split.assignment, devices, mode, split.device_of)
    assert split.evaluation == again
    assert set(split.assignment) == set(range(count))
    assert split.assignment[-1] == count - 1
    assert again.step_ms >= again.lower_bound_ms * (1 - 1e-12)
    best = Solver(problem).solve(devices, mode, epsilon=0.0)
    assert again.step_ms <= best.evaluation.step_ms * (1 + epsilon + 1e-6)


@FEW
@given(problems(), MODES)
def test_solving_is_deterministic(problem: Problem, mode: Mode) -> None:
    devices = Devices.equal(2, link_gb_per_s=1e-5)
    assert try_to_solve(problem, devices, mode) == try_to_solve(problem, devices, mode)


@FEW
@given(problems(), MODES, st.sampled_from([0.25, 8.0]))
def test_scaling_time_scales_the_step(problem: Problem, mode: Mode, factor: float) -> None:
    devices = Devices.equal(2)
    scaled = replace(
        problem,
        cost_ms=problem.cost_ms * factor,
        item_cost_ms=problem.item_cost_ms * factor,
        driver_ms=problem.driver_ms * factor,
    )
    split, other = (try_to_solve(p, devices, mode, byte_weight=1.0) for p in (problem, scaled))
    assert (split is None) == (other is None)
    if split is not None and other is not None:
        assert other.assignment == split.assignment  # a power of two changes no rounding
        assert other.evaluation.step_ms == pytest.approx(split.evaluation.step_ms * factor)


@FEW
@given(problems(), MODES, st.randoms(use_true_random=False))
def test_names_and_numbers_of_items_and_values_do_not_matter(problem: Problem, mode: Mode, random: object) -> None:
    values, items = list(range(len(problem.value_names))), list(range(len(problem.item_bytes)))
    random.shuffle(values)  # type: ignore[attr-defined]
    random.shuffle(items)  # type: ignore[attr-defined]
    value_place, item_place = np.argsort(values), np.argsort(items)
    relabelled = replace(
        problem,
        names=tuple(f"other{v}" for v in range(problem.size)),
        value_names=tuple(f"value{u}" for u in values),
        value_producer=problem.value_producer[values],
        value_bytes=problem.value_bytes[values],
        edge_value=value_place[problem.edge_value].astype(np.int64),
        item_cost_ms=problem.item_cost_ms[items],
        item_macs=problem.item_macs[items],
        item_bytes=problem.item_bytes[items],
        item_parameter_bytes=problem.item_parameter_bytes[items],
        reading_item=item_place[problem.reading_item].astype(np.int64),
    )
    devices = Devices.equal(2, link_gb_per_s=1e-5)
    split, other = (try_to_solve(p, devices, mode) for p in (problem, relabelled))
    if split is None or other is None:
        assert split is other
        return
    assert other.evaluation.step_ms == pytest.approx(split.evaluation.step_ms)
    weight = 0.01
    assert other.score(weight) == pytest.approx(split.score(weight), rel=0.2)


@FEW
@given(problems(), MODES)
def test_a_wider_epsilon_never_costs_score(problem: Problem, mode: Mode) -> None:
    if problem.size < 3:
        return
    splits = Solver(problem).sweep(
        Devices.equal(3, link_gb_per_s=1e-5), mode, epsilons=(0.0, 0.05, 0.5), byte_weight=0.01
    )
    scores = [split.score(0.01) for split in splits]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 20 else []) for seed in range(60)]
)
def test_async_finds_the_best_fold_of_a_small_graph(seed: int) -> None:
    problem, devices = random_problem(seed, size=7), Devices.equal(3, link_gb_per_s=1e-5)
    split = Solver(problem).solve(devices, "async", epsilon=0.0)
    found = brute_force(problem, devices, "async", is_fold)
    assert split.evaluation.step_ms <= min(figures.step_ms for figures in found) * (1 + 1e-9)


def test_a_fold_keeps_skip_connections_fresh() -> None:
    # 0..7 a chain with skip connections 0 -> 7, 1 -> 6, 2 -> 5: large, and stale if cut
    problem = chain([1.0] * 8)
    skips = [(0, 7), (1, 6), (2, 5)]
    problem = replace(
        problem,
        value_bytes=np.array([1000, 1000, 1000, 10, 10, 10, 10]),
        edge_value=np.concatenate([problem.edge_value, [u for u, _ in skips]]),
        edge_reader=np.concatenate([problem.edge_reader, [v for _, v in skips]]),
        edge_staleness=np.ones(10),
    )
    split = Solver(problem).solve(Devices.equal(2), "async")
    assert split.form == "folded"
    assert split.assignment == (1, 1, 0, 0, 0, 0, 1, 1)
    chained = Solver(problem).solve(Devices.equal(2), "lookahead")
    assert chained.form == "contiguous"
    assert chained.assignment == (0, 0, 0, 0, 1, 1, 1, 1)
    assert split.evaluation.bytes_per_step < chained.evaluation.bytes_per_step


def test_a_node_larger_than_the_average_share() -> None:
    split = Solver(chain([1, 1, 20, 1, 1])).solve(Devices.equal(4), "lookahead", epsilon=0.0)
    assert split.evaluation.step_ms == 20
    assert split.evaluation.gap == 0


@pytest.mark.parametrize("mode", ["lookahead", "async"])
def test_zero_costs(mode: Mode) -> None:
    split = Solver(chain([0.0] * 5)).solve(Devices.equal(3), mode)
    assert set(split.assignment) == {0, 1, 2}
    assert split.evaluation.gap == 0


@pytest.mark.parametrize("mode", ["lookahead", "async"])
def test_one_device_gets_everything(mode: Mode) -> None:
    split = Solver(chain([1, 2, 3])).solve(Devices.equal(1), mode)
    assert split.assignment == (0, 0, 0)
    assert split.evaluation.bytes_per_step == 0


def test_more_devices_than_parts() -> None:
    with pytest.raises(InfeasibleError, match="4 components need as many parts, but the denoiser has only 3"):
        Solver(chain([1, 2, 3])).solve(Devices.equal(4))


def test_faster_devices_get_more() -> None:
    devices = Devices(("slow", "fast", "slow"), (1.0, 2.0, 1.0), (math.inf,) * 3, (math.inf,) * 3, (0.0,) * 3)
    split = Solver(chain([1.0] * 8)).solve(devices, "lookahead", epsilon=0.0)
    assert split.evaluation.step_ms == 2.0
    fast = split.device_of.index(1)
    assert split.assignment.count(fast) == 4


@pytest.mark.parametrize("mode", ["lookahead", "async"])
def test_memory_moves_the_border(mode: Mode) -> None:
    # balanced would be 4 and 4 nodes of 100 bytes; the second device holds two, and what it receives
    devices = Devices(("large", "small"), (1.0, 1.0), (1e6, 240.0), (math.inf,) * 2, (0.0, 0.0))
    split = Solver(chain([1.0] * 8, size_bytes=10)).solve(devices, mode)
    small = split.device_of.index(1)
    assert split.assignment.count(small) == 2
    assert split.evaluation.feasible


def test_memory_that_nothing_fits_is_said_with_the_numbers() -> None:
    devices = Devices.equal(2, name="tiny", memory_bytes=300)
    with pytest.raises(InfeasibleError, match=r"8e-07 GB.*tiny 3e-07 GB"):
        Solver(chain([1.0] * 8)).solve(devices, "async")


def test_memory_that_no_fold_fits_is_met_by_a_free_placement() -> None:
    # three devices; sizes 6 1 5 5 1 6 (x 100): 700 each only as {6, 1} {5, ...}: a fold cannot pair them
    problem = replace(chain([1.0] * 6, size_bytes=0), item_bytes=np.array([600, 400, 200, 600, 400, 200]))
    devices = Devices.equal(3, memory_bytes=805)
    with pytest.raises(InfeasibleError):
        Solver(problem).solve(devices, "lookahead")
    split = Solver(problem).solve(devices, "async")
    assert split.evaluation.feasible
    assert split.assignment[-1] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "lookahead, async"),
        ({"epsilon": -0.1}, "0 or more"),
        ({"epsilon": math.nan}, "0 or more"),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Solver(chain([1, 2])).solve(Devices.equal(2), **options)  # type: ignore[arg-type]
