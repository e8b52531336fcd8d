"""Small random Problems, and every placement of them: what the searches are compared with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
from hypothesis import strategies as st

from partitioner.errors import UsageError
from partitioner.search.devices import Devices
from partitioner.search.evaluate import Evaluation, evaluate
from partitioner.search.folds import Fold
from partitioner.search.mode import Mode
from partitioner.search.problem import Problem


def random_problem(seed: int, size: int | None = None) -> Problem:
    """A DAG of up to 8 nodes with several readers, shared items, equal and zero costs now and then."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9)) if size is None else size
    edges = {(int(rng.integers(0, v)), v) for v in range(1, n)}
    edges |= {(int(u), int(v)) for u, v in (sorted(rng.choice(n, 2, replace=False)) for _ in range(rng.integers(0, n)))}
    if rng.random() < 0.2:
        edges = {edge for edge in edges if rng.random() < 0.5}  # disconnected parts
    pairs = sorted(edges)
    values = sorted({u for u, _ in pairs})
    items = int(rng.integers(0, 4))
    readings = sorted({(i, int(v)) for i in range(items) for v in rng.integers(0, n, size=int(rng.integers(1, 4)))})
    cost = rng.integers(0, 6, size=n).astype(float) if rng.random() < 0.5 else rng.uniform(0.1, 5, size=n)
    return Problem(
        names=tuple(f"n{v}" for v in range(n)),
        cost_ms=cost,
        macs=rng.integers(0, 100, size=n),
        activation_bytes=rng.integers(0, 20, size=n),
        together=np.full(n, -1),
        light=np.zeros(n, dtype=np.bool_),
        value_names=tuple(f"n{v}" for v in values),
        value_producer=np.array(values, dtype=np.int64),
        value_bytes=rng.integers(1, 50, size=len(values)),
        edge_value=np.array([values.index(u) for u, _ in pairs], dtype=np.int64),
        edge_reader=np.array([v for _, v in pairs], dtype=np.int64),
        edge_staleness=rng.uniform(0, 1, size=len(pairs)),
        item_cost_ms=rng.choice([0.0, 0.5], size=items),
        item_macs=rng.integers(0, 10, size=items),
        item_bytes=rng.integers(0, 30, size=items),
        item_parameter_bytes=np.zeros(items, dtype=np.int64),
        reading_item=np.array([i for i, _ in readings], dtype=np.int64),
        reading_node=np.array([v for _, v in readings], dtype=np.int64),
        driver_ms=float(rng.choice([0.0, 1.5])),
    )


def random_devices(seed: int, count: int) -> Devices:
    """Equal or unequal devices, slow or fast links, with or without a memory limit."""
    rng = np.random.default_rng(seed)
    kinds = int(rng.integers(1, 3))
    kind = rng.integers(0, kinds, size=count)
    speeds = [1.0, float(rng.uniform(0.5, 2))]
    memory = [float("inf"), float(rng.integers(60, 400))] if rng.random() < 0.6 else [float(rng.integers(60, 400))] * 2
    links = [float("inf"), 1e-5] if rng.random() < 0.5 else [1e-5, 5e-6]  # 1e-5 GB/s are 10 bytes per ms
    return Devices(
        tuple(f"d{k}" for k in kind),
        tuple(speeds[k] for k in kind),
        tuple(memory[k] for k in kind),
        tuple(links[k] for k in kind),
        tuple([0.0, 0.1][k] for k in kind),
    )


def problems() -> st.SearchStrategy[Problem]:
    return st.builds(random_problem, st.integers(0, 10**6))


Placed = tuple[tuple[int, ...], tuple[int, ...]]  # component of each node, device of each component


def placements(problem: Problem, devices: Devices, shape: Callable[[tuple[int, ...]], bool]) -> Iterator[Placed]:
    """Every placement of that shape, on every order of the devices."""
    orders = list(dict.fromkeys(itertools.permutations(range(len(devices)))))
    for assignment in itertools.product(range(len(devices)), repeat=problem.size):
        if len(set(assignment)) == len(devices) and shape(assignment):
            for order in orders:
                yield assignment, order


def is_contiguous(assignment: tuple[int, ...]) -> bool:
    return all(a <= b for a, b in itertools.pairwise(assignment))


def is_fold(assignment: tuple[int, ...]) -> bool:
    """Whether taking away components from the outside, in the order of their numbers, leaves a run each time."""
    left = list(range(len(assignment)))
    for k in range(max(assignment)):
        left = [v for v in left if assignment[v] != k]
        if left[-1] - left[0] + 1 != len(left):
            return False
    return True


def brute_force(
    problem: Problem,
    devices: Devices,
    mode: Mode,
    shape: Callable[[tuple[int, ...]], bool],
    order: tuple[int, ...] | None = None,
) -> list[Evaluation]:
    """Evaluations of every placement of that shape that fits the memories. order: of the devices; all by default."""
    found = []
    for assignment, placed in placements(problem, devices, shape):
        if order is not None and placed != order:
            continue
        try:
            figures = evaluate(problem, assignment, devices, mode, placed)
        except UsageError:  # look-ahead backwards
            continue
        if figures.feasible:
            found.append(figures)
    return found


def score(figures: Evaluation, byte_weight: float) -> float:
    return figures.staleness + byte_weight * (figures.bytes_per_step + figures.repeated_bytes)


def unfold(problem: Problem, fold: Fold) -> np.ndarray:
    """Component of each node of a fold."""
    owner = np.full(problem.size, -1)
    for k in range(len(fold.device_of)):
        owner[fold.left[k] : fold.left[k + 1]] = k
        owner[fold.right[k + 1] : fold.right[k]] = k
    return owner


def least_score(found: list[Evaluation], cap_ms: float, byte_weight: float) -> float:
    return min((score(figures, byte_weight) for figures in found if figures.step_ms <= cap_ms), default=math.inf)
