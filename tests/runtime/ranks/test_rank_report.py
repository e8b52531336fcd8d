"""What ranks report of themselves."""

from __future__ import annotations

import pickle

from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import Trajectory, toy, toy_plan


def test_ranks_report_what_they_have_done() -> None:
    denoiser = toy()
    with Engine(denoiser, toy_plan(denoiser), EngineOptions(transport="emulation", exact=True)) as engine:
        Trajectory(calls=3).through(engine)
        reports = engine.stats.ranks
    assert [(report.steps, report.step, report.busy, report.waiting_for) for report in reports] == [
        (3, 2, False, None),
        (3, 2, False, None),
    ]
    assert all(report.sent_bytes > 0 and report.resident_bytes > 0 and report.marks == () for report in reports)
    held = {p.data_ptr(): p.nbytes for p in denoiser.parameters()}
    assert sum(report.parameter_bytes for report in reports) <= sum(held.values()) * 1.5
    assert pickle.loads(pickle.dumps(reports)) == reports
