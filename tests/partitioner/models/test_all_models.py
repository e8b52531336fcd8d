"""One model of each kind over 2, 3 and 8 devices, at a low resolution to be quick: plans load and are balanced.

Every name at its full size is what ``python -m tools.measure models`` plans.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from partitioner.plan.plan import Plan
from tests.support.plans import plan_simply

pytestmark = pytest.mark.slow

NAMES = ("flux", "sd15", "svd")
SIZE = {"svd": (64, 128, 4)}  # height, width, frames


@pytest.mark.parametrize("model", NAMES)
def test_plans_load_and_are_balanced(model: str, tmp_path: Path) -> None:
    height, width, frames = SIZE.get(model, (256, 256, None))
    graph = trace_model(model_spec(model, height=height, width=width, frames=frames))
    for count in (2, 3, 8):
        plan = plan_simply(graph, count, "a100").plan
        path = tmp_path / f"{count}.json"
        plan.save(path)
        again = Plan.load(path)
        assert again == plan
        again.check(graph)
        assert plan.components == count
        loads = [component.compute_ms for component in plan.predicted.components]
        allowed = max(1.05, plan.predicted.lower_bound_ms / (sum(loads) / count) * 1.05)
        assert max(loads) / (sum(loads) / count) <= allowed
