"""Plans for tests, by the data sheet of a device."""

from __future__ import annotations

from typing import Any

from partitioner.costs.model import CostModel
from partitioner.graph.ir import TracedGraph
from partitioner.models.spec import ModelSpec
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import Planning, plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromGraphs, FromSpec


def plan_simply(denoiser: TracedGraph | ModelSpec, devices: int, device: str = "cpu", **options: Any) -> Planning:
    """A plan over so many equal devices, slower than one or not."""
    source = FromGraphs(denoiser) if isinstance(denoiser, TracedGraph) else FromSpec(denoiser)
    return plan(PlanRequest(source, devices, CostModel(device), PlanOptions(force=True, **options)))
