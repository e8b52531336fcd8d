"""Moving the borders of a fold never makes it worse."""

from __future__ import annotations

import numpy as np
import pytest

from partitioner.search.descent import improve_borders
from partitioner.search.devices import Devices
from partitioner.search.evaluate import evaluate
from partitioner.search.folds import Fold
from partitioner.search.intervals import Intervals
from tests.support.random_problems import (
    is_fold,
    random_problem,
    score,
    unfold,
)

WEIGHT = 0.01
SLACK = 1 + 1e-9
COUNTS = [1, 2, 3]


@pytest.mark.parametrize("seed", range(60))
def test_refining_never_makes_a_split_worse_and_keeps_it_a_fold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = COUNTS[seed % 3]
    problem = random_problem(seed, size=8)
    devices = Devices.equal(count, link_gb_per_s=1e-5)
    cuts = np.sort(rng.choice(np.arange(1, 8), count - 1, replace=False)).tolist()
    start = Fold((0, *cuts, 8), (8,) * (count + 1), tuple(range(count)))
    before = evaluate(problem, unfold(problem, start), devices, "async")
    cap = before.step_ms * float(rng.uniform(0.7, 1.2))
    fold = improve_borders(Intervals(problem), start, devices, "async", cap, WEIGHT)
    after = evaluate(problem, unfold(problem, fold), devices, "async", fold.device_of)
    assert is_fold(tuple(unfold(problem, fold)))
    assert max(after.step_ms, cap) <= max(before.step_ms, cap) * SLACK
    if before.step_ms <= cap:
        assert score(after, WEIGHT) <= score(before, WEIGHT) * SLACK
