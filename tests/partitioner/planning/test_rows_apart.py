"""RowsApart: rows are shared only where the denoiser keeps them apart."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

from partitioner.costs.model import CostModel
from partitioner.errors import UsageError
from partitioner.plan.plan import Plan
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromModule


class Changed(nn.Module):
    """Layers with something done to the rows between them."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.change = change
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(4))

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.change(x) * ids[0]


def planned(change: Callable[[torch.Tensor], torch.Tensor], branches: int | None, *, halves: bool = False) -> Plan:
    def inputs(rows: int) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(rows, 64, 512), "ids": torch.ones(rows, 64, 1)}

    source = FromModule(
        Changed(change).eval(), inputs(4), {"x": "latent", "ids": "prompt"}, "changed", inputs(2) if halves else None
    )
    options = PlanOptions(branches=branches, force=True)
    return plan(PlanRequest(source, "cpu,cpu,cpu,cpu", CostModel("cpu"), options)).plan


def of_half(x: torch.Tensor) -> torch.Tensor:
    """Each row times the first of its half; of whatever has fewer rows than 4, too, as attention across frames."""
    halves = x.reshape(2, len(x) // 2, *x.shape[1:]) if len(x) > 1 else x.unsqueeze(0)
    return (halves * halves[:, :1]).flatten(0, 1)


def of_four(x: torch.Tensor) -> torch.Tensor:
    """Each row times the first of its pair."""
    pairs = x.reshape(-1, 2, *x.shape[1:]) if len(x) > 1 else x.unsqueeze(0)
    return (pairs * pairs[:, :1]).flatten(0, 1)


def test_rows_that_stay_apart_are_shared() -> None:
    made = planned(torch.sin, 4)
    assert (made.branches, made.alike) == (4, ("ids",))
    assert planned(of_four, 2).branches == 2


def test_rows_that_are_mixed_are_not_shared_unless_asked_and_then_refused() -> None:
    assert planned(lambda x: x - x.mean(0, keepdim=True), None, halves=True).branches == 1
    for change, branches in ((lambda x: x - x.mean(0, keepdim=True), 2), (of_half, 2), (of_four, 4)):
        with pytest.raises(UsageError, match=rf"--branches {branches}: .* in its forward .*; use --branches auto"):
            planned(change, branches)


def test_a_number_that_counts_the_rows_treats_parts_differently() -> None:
    with pytest.raises(UsageError, match=r"mul\.Tensor in its forward treats rows of the batch differently"):
        planned(lambda x: x * x.shape[0], 2)


def test_only_halves_are_shared_where_it_is_not_known_and_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def unknown(x: torch.Tensor) -> torch.Tensor:
        return x.cummax(1).values

    with caplog.at_level(logging.WARNING, "partitioner"):
        assert planned(unknown, 2).branches == 2
    assert "cummax in its forward is not known to keep rows apart: the halves of a call are" in caplog.text
    with pytest.raises(UsageError, match="--branches 4: cummax in its forward is not known to keep rows apart"):
        planned(unknown, 4)
