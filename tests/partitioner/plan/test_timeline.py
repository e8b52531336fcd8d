"""Timelines as Chrome traces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partitioner.plan.timeline import chrome_trace, write_trace
from partitioner.simulator.machine import Machine
from profiles.json_files import JsonFileError
from tests.support.simulated import WIRE, run


def test_a_trace_has_a_row_per_rank_and_an_arrow_per_transfer(tmp_path: Path) -> None:
    played = run([3.0, 5.0], "async", machine=Machine.uniform(2, WIRE), calls=4)
    path = tmp_path / "rank.pt.trace.json"
    write_trace(path, chrome_trace(played.timeline, ["component 1", "component 0"], source="simulated"))
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["otherData"] == {"source": "simulated"}
    events = document["traceEvents"]
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["component 1", "component 0"]
    calls = [e for e in events if e["name"].startswith("ProfilerStep#")]
    assert [e["ts"] + e["dur"] for e in calls] == pytest.approx([1e3 * end for end in played.timeline.ends_ms])
    spans = [e for e in events if e["ph"] == "X" and "kind" in e.get("args", {})]
    assert len(spans) == len(played.timeline.spans)
    assert sum(e["dur"] for e in spans if e["args"]["kind"] == "compute" and e["pid"] == 0) == pytest.approx(4 * 5000)
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert len(starts) == len(ends) == len(played.timeline.transfers)
    for number, end in ends.items():
        assert starts[number]["pid"] != end["pid"]
        assert end["tid"] == 1 + end["pid"]
        assert starts[number]["ts"] + 1250 <= end["ts"]
    with pytest.raises(JsonFileError):
        write_trace(path, document)
