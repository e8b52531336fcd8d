"""The cost of checking messages: measured between engines that do and that do not, and give the same bits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from runtime.transport.header import Header, describe
from runtime.transport.mailbox import MessageKey
from tests.support.engines import ROLES, Trajectory, equal, toy, toy_plan
from tools.measure import checks


@pytest.mark.processes
def test_an_engine_without_checks_gives_the_same_and_checks_nothing() -> None:
    denoiser = toy()
    plan = toy_plan(denoiser)
    outputs = []
    for checked in (True, False):
        with checks.start(denoiser, plan, checked=checked) as engine:
            outputs.append(Trajectory().through(engine))
            mailbox: Any = engine._ranks.workers[0].mailbox
            header = Header(0, 0, 0, MessageKey(0, 0, 0, 0), describe(torch.zeros(1)))  # not one of ours
            if checked:
                with pytest.raises(Exception, match="does not belong"):
                    mailbox.check_header(header, 1, 0)
            else:
                assert mailbox.check_header(header, 1, 0).wire is mailbox._tables[0][0]
    assert equal(*outputs)


@pytest.mark.processes
def test_the_command_prints_its_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def small() -> Any:
        inputs = {"x": torch.zeros(2, 5, 8), "timestep": torch.tensor(1.0), "context": torch.zeros(2, 6)}
        return Renamed(), inputs, {**ROLES, "timestep": "timestep"}

    class Renamed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.toy = toy()
            self.eval()

        def forward(self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> Any:
            return self.toy(x, timestep, context)

    monkeypatch.setitem(checks.DENOISERS, "sd15-like", small)
    assert checks.main(["--rounds", "2", "--calls", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["boundary_tensors"] > 0
    assert result["checked_ms"] / result["unchecked_ms"] == pytest.approx(result["ratio"])
    assert 0 < result["drivers_checks_ms"] < result["checked_ms"]
    assert checks.main(["--rounds", "1"]) == 2
