"""TracedGraphs: which calls are traced anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from partitioner.graph.export import trace
from partitioner.plan.plan import Plan
from runtime.engine import Engine
from runtime.errors import PlanMismatch
from runtime.options import EngineOptions
from tests.support.engines import Trajectory, toy_plan
from tests.support.toy_plans import DENOISER
from tools.mutate.forked import Limits, run_forked


def test_another_literal_is_another_trace() -> None:
    inputs = Trajectory().inputs(0)
    with Engine(DENOISER, toy_plan(DENOISER), EngineOptions(transport="emulation")) as engine, torch.no_grad():
        assert torch.equal(engine(**inputs, gain=2.0)[0], DENOISER(**inputs, gain=2.0)[0])
        assert torch.equal(engine(**inputs)[0], DENOISER(**inputs)[0])


def test_a_shape_is_traced_once_in_an_engines_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a trajectory's start costs no trace, whatever was run in between."""
    rows = []

    def counted(denoiser: Any, arguments: Any, roles: Any, *, model: str) -> Any:
        rows.append(arguments["x"].shape[0])
        return trace(denoiser, arguments, roles, model=model)

    monkeypatch.setattr("runtime.driver.traced_graphs.trace", counted)
    with Engine(DENOISER, toy_plan(DENOISER, 2), EngineOptions(transport="emulation")) as engine:
        for count in (2, 4, 2, 4, 2):
            Trajectory(calls=3, rows=count).through(engine)
    assert rows == [2, 4]


def test_a_plan_of_absurd_size_is_refused_without_memory_for_its_inputs(tmp_path: Path) -> None:
    plan = toy_plan(DENOISER).document
    for item in plan["inputs"]:  # 5 GB of latents alone
        item["shape"] = [2**25 if size == 2 else size for size in item["shape"]]

    def start(_arguments: Sequence[str]) -> int:
        try:
            Engine(DENOISER, Plan.parse(plan), EngineOptions(transport="emulation"))
        except PlanMismatch as error:
            return error.exit_code
        return 0

    ended = run_forked(start, [], tmp_path, Limits(wall_s=120.0))
    assert ended.code == 3, ended.output
    assert ended.memory_bytes < 500e6
