"""Links measured between real processes, and the description of them that the planner reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partitioner.fleet import parse_fleet
from partitioner.simulator.machine import Link
from runtime.errors import EngineError
from tools.measure import links as measure_links


@pytest.mark.processes
def test_every_ordered_pair_is_measured_and_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "devices.json"
    assert measure_links.main(["--ranks", "2", "--output", str(path), "--json"]) == 0
    links = json.loads(capsys.readouterr().out)["links"]
    assert [(row["sender"], row["reader"]) for row in links] == [(0, 1), (1, 0)]
    assert all(row["latency_us"] > 0 and row["gb_per_s"] > 0 for row in links)
    fleet = parse_fleet(str(path), "cpu")
    assert [device.name for device in fleet] == ["cpu", "cpu"]
    assert fleet[1].link_gb_per_s == pytest.approx(links[0]["gb_per_s"], rel=0.01, abs=0.001)


def test_a_device_is_as_fast_as_the_slowest_way_to_it() -> None:
    links = {(0, 1): Link(0.1, 4.0), (1, 0): Link(0.2, 2.0), (0, 2): Link(0.1, 4.0), (2, 0): Link(0.1, 8.0),
             (1, 2): Link(0.3, 9.0), (2, 1): Link(0.1, 1.0)}  # fmt: skip
    devices = measure_links.describe(links, "cpu")["devices"]
    assert [(d["link_gb_per_s"], d["latency_us"]) for d in devices] == [(2.0, 200.0), (1.0, 100.0), (4.0, 300.0)]


def test_one_rank_has_no_links() -> None:
    assert measure_links.main(["--ranks", "1"]) == 2


def test_what_cannot_be_written_is_found_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure_links, "measure_links", lambda ranks: pytest.fail("measured"))
    path = tmp_path / "devices.json"
    path.write_text("precious")
    assert measure_links.main(["--output", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert measure_links.main(["--name", "abacus"]) == 2
    assert "no device 'abacus'" in capsys.readouterr().err


def test_a_rank_that_fails_is_exit_code_5(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(ranks: int) -> None:
        raise EngineError("a rank ended before its links were measured")

    monkeypatch.setattr(measure_links, "measure_links", fail)
    assert measure_links.main([]) == 5
    assert capsys.readouterr().err == "tools.measure.links: error: a rank ended before its links were measured\n"
