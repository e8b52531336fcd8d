"""partitioner.compile: any module, with and without a guidance batch."""

from __future__ import annotations

from typing import Any

import partitioner
from partitioner.graph.export import trace
from partitioner.plan.plan import Plan
from partitioner.planning.compile import compile
from partitioner.planning.options import PlanOptions
from tests.support.chain import ROLES, Chain, arguments


def test_compile_plans_any_module(tmp_path: Any) -> None:
    module = Chain().eval()
    plan = compile(module, arguments(2), ROLES, devices=4, model="my net", options=PlanOptions(force=True))
    assert (plan.model, plan.branches, plan.components) == ("my-net", 1, 4)
    plan.save(tmp_path / "plan.json")
    graph = trace(module, arguments(2), ROLES)
    Plan.load(tmp_path / "plan.json").check(graph)
    other = trace(module, arguments(5), ROLES)
    assert set(plan.place(other).values()) == {0, 1, 2, 3}
    assert partitioner.compile is compile


def test_compile_splits_the_guidance_batch_where_it_is_given() -> None:
    module = Chain().eval()
    plan = compile(
        module, arguments(2), ROLES, devices="h200,h200", branch_inputs=arguments(1), options=PlanOptions(force=True)
    )
    assert (plan.branches, plan.components, plan.devices) == (2, 1, ("h200", "h200"))
