"""What a real run recorded, as a timeline."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from partitioner.plan.timeline import COMMUNICATION, COMPUTE, DRIVER, IDLE, chrome_trace, write_trace
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.worker.recording import Computed, Recorder, Sent, Taken, assemble
from tests.support.engines import Trajectory, toy, toy_plan


def test_a_wait_is_idle_until_the_message_was_sent() -> None:
    marks = {
        0: [Taken((1, 2, 0, 0), "a", 10.0, 10.5), Computed("work", 10.5, 11.0)],
        1: [Computed("early", 9.0, 9.5), Computed("made", 10.0, 10.3), Sent((1, 2, 0, 0), (0,), "a", 64, 10.3)],
    }
    timeline = assemble(marks, [(10.0, 11.0), (11.2, 12.0)])
    assert [(s.rank, s.kind, round(s.start_ms), round(s.end_ms)) for s in timeline.spans] == [
        (0, IDLE, 0, 300),
        (0, COMMUNICATION, 300, 500),
        (0, COMPUTE, 500, 1000),
        (0, DRIVER, 1000, 1200),
        (1, COMPUTE, 0, 300),
    ]
    (transfer,) = timeline.transfers
    assert (transfer.source, transfer.reader, transfer.size_bytes) == (1, 0, 64)
    assert (round(transfer.sent_ms), round(transfer.arrived_ms)) == (300, 500)
    assert [round(end) for end in timeline.ends_ms] == [1000, 2000]


def test_of_a_long_run_the_last_calls_that_all_ranks_have_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.worker.recording.MOST_MARKS", 10)
    recorders = [Recorder(), Recorder()]
    calls = [(float(call), call + 0.9) for call in range(50)]
    for start, _ in calls:
        for part in range(3):
            recorders[0].add(Computed("work", start + 0.1 * part, start + 0.1 * part + 0.1))
        recorders[1].add(Computed("work", start + 0.2, start + 0.3))
    assert all(10 <= len(recorder.marks) < 20 for recorder in recorders)
    timeline = assemble({rank: recorder.marks for rank, recorder in enumerate(recorders)}, calls)
    shown = len(timeline.ends_ms)
    assert 3 <= shown <= 6
    computed = Counter(span.rank for span in timeline.spans if span.kind == COMPUTE)
    assert computed == {0: 3 * shown, 1: shown}


@pytest.mark.parametrize("transport", ["emulation", "threads", "processes"])
def test_every_rank_and_transfer_of_a_run_is_there(transport: str, tmp_path: Path) -> None:
    denoiser = toy()
    trajectory = Trajectory()
    plan = toy_plan(denoiser, 3)
    with Engine(denoiser, plan, EngineOptions(transport=transport, record=True)) as engine:
        trajectory.through(engine)
        timeline = engine.timeline()
    computed = Counter(span.rank for span in timeline.spans if span.kind == COMPUTE)
    assert set(computed) == {0, 1, 2}
    assert len(timeline.ends_ms) == len(trajectory)
    boundaries = sum(len(boundary.readers) for boundary in plan.boundaries)
    among_ranks = [t for t in timeline.transfers if t.name not in ("x", "t", "context")]
    # the last call's messages are taken at the next call, which does not come
    assert len(among_ranks) >= boundaries * (len(trajectory) - 1)
    assert all(t.sent_ms <= t.arrived_ms for t in timeline.transfers)
    for rank in range(3):
        own = sorted((s.start_ms, s.end_ms) for s in timeline.spans if s.rank == rank)
        assert all(end <= start + 1e-6 for (_, end), (start, _) in pairwise(own))
    write_trace(tmp_path / "run.json", chrome_trace(timeline, recorded="test"))
    document = json.loads((tmp_path / "run.json").read_text())
    assert {event["pid"] for event in document["traceEvents"]} == {0, 1, 2}
    assert {"s", "f", "X"} <= {event["ph"] for event in document["traceEvents"]}


def test_without_being_asked_nothing_is_recorded() -> None:
    denoiser = toy()
    with Engine(denoiser, toy_plan(denoiser, 2), EngineOptions(transport="emulation")) as engine:
        Trajectory().through(engine)
        assert not any(report.marks for report in engine.stats.ranks)
