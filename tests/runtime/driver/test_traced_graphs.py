"""TracedGraphs: which calls are traced anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from partitioner.graph.export import trace
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import Trajectory, toy_plan
from tests.support.toy_plans import DENOISER


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
