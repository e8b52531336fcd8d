"""Plans of several denoisers for the same devices: as many ranks each, each traced and planned once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch

from partitioner.costs.model import CostModel
from partitioner.errors import InfeasibleError
from partitioner.graph.ir import TracedGraph
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromGraphs, FromModule
from partitioner.planning.together import plan_together


def request(layers: int, devices: int, halves: bool = False) -> PlanRequest:
    chain = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(layers))).eval()
    both, half = {"input": torch.zeros(512, 256)}, {"input": torch.zeros(256, 256)} if halves else None
    source = FromModule(chain, both, {"input": "latent"}, f"chain-{layers}", half)
    traced = source.trace([512, 256] if halves else [512], lambda _: None)
    graphs = FromGraphs(traced[512], (traced[256],) if halves else ())
    return PlanRequest(graphs, devices, CostModel("cpu"))


class Counted(FromGraphs):
    """Graphs whose tracing is counted."""

    traces = 0

    def trace(self, rows: Iterable[int], progress: Any) -> dict[int, TracedGraph]:
        Counted.traces += 1
        return super().trace(rows, progress)


def ranks(plannings: Mapping[str, Any]) -> dict[str, int]:
    return {name: planning.plan.ranks for name, planning in plannings.items()}


def test_all_have_as_many_ranks_as_the_one_with_fewest() -> None:
    said: list[str] = []
    halves, whole = request(6, 5, halves=True), request(6, 5)
    assert ranks(plan_together({"halves": halves})) == {"halves": 4}, "an odd device stays idle"
    counted = PlanRequest(Counted(whole.denoiser.trace([512], said.append)[512]), 5, whole.costs)
    plannings = plan_together({"whole": counted, "halves": halves, "same": counted}, progress=said.append)
    assert ranks(plannings) == {"whole": 4, "halves": 4, "same": 4}
    assert plannings["whole"] is plannings["same"]
    assert Counted.traces == 1


def test_what_no_plan_makes_faster_is_left_to_the_pipeline(caplog: pytest.LogCaptureFixture) -> None:
    tiny = request(1, 2)
    assert ranks(plan_together({"tiny": tiny, "large": request(4, 2)})) == {"large": 2}
    assert "no plan for tiny, which runs in the pipeline" in caplog.text
    with pytest.raises(InfeasibleError, match=r"tiny, other: "):
        plan_together({"tiny": tiny, "other": tiny})
