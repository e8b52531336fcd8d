"""check_costs measures and refines small denoisers, and says which targets were missed. No time is asserted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.planning.remeasure import Refinement, Round
from tools.denoisers import DENOISERS, Denoiser
from tools.measure import costs as check_costs


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            sample = torch.relu(layer(sample + timestep))
        return sample


def layers() -> Denoiser:
    inputs = {"sample": torch.randn(16, 32), "timestep": torch.tensor(1.0)}
    return Layers().eval(), inputs, {"sample": "latent", "timestep": "timestep"}


def test_figures_of_every_denoiser_and_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DENOISERS, "layers", layers)
    code = check_costs.main(["--denoiser", "layers", "--ranks", "2", "--ranks", "3", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == (1 if check_costs.misses(document) else 0)
    (whole,) = document["whole"]
    assert whole["error"] == pytest.approx(whole["summed_ms"] / whole["whole_ms"] - 1)
    two, three = document["components"]
    assert (two["ranks"], three["ranks"]) == (2, 3)
    assert [len(three[key]) for key in ("predicted_ms", "measured_ms", "refined_ms")] == [3, 3, 3]
    refined = three["refined_ms"]
    assert three["refined_slowest_over_mean"] == pytest.approx(3 * max(refined) / sum(refined))
    assert max(refined) <= max(three["measured_ms"])
    assert three["pace"] > 0
    assert "layers" in check_costs.table(document)


def test_a_machine_that_has_become_slower_is_no_error() -> None:
    """Twice as slow: components take 2 and 4 ms as predicted from 1 and 2 ms, then 2 and 3."""
    for taken, error in (((2.0, 4.0), 0.0), ((2.0, 3.0), 4 / 3 - 1)):
        split = Round((1.0, 2.0), taken, 1.0)
        refinement = Refinement((split,), 0, None, None, 1.0)  # type: ignore[arg-type]
        assert check_costs._figures(refinement, pace=2.0)["error"] == pytest.approx(error)


def test_what_misses_its_target_is_named() -> None:
    whole = {"denoiser": "a", "summed_ms": 1.12, "whole_ms": 1.0, "error": 0.12}
    row: dict[str, Any] = {"denoiser": "a", "ranks": 2, "error": 0.2, "refined_slowest_over_mean": 1.06}
    row |= {"predicted_ms": [1.2, 1.0], "measured_ms": [1.0, 1.0], "slowest_over_mean": 1.0, "rounds": 1, "pace": 1.0}
    document = {"whole": [whole], "components": [row]}
    assert check_costs.misses(document) == [
        "a's nodes +12.0%", "a on 2 predicted 20.0% off", "a on 2 slowest 6.0% above the mean"
    ]  # fmt: skip
    assert check_costs.table(document).endswith("missed: " + "; ".join(check_costs.misses(document)))
    good = {**row, "error": 0.099, "refined_slowest_over_mean": 1.049}
    document = {"whole": [{**whole, "error": -0.1}], "components": [good]}
    assert check_costs.misses(document) == []
    assert check_costs.table(document).endswith("all targets met")


def test_one_rank_has_nothing_to_check() -> None:
    assert check_costs.main(["--ranks", "1"]) == 2
