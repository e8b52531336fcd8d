"""The comparison with AsyncDiff's published figures, on one model; docs/results/published.md has the whole table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from profiles.device_sheets import device_spec
from tools.published.fit import fit_efficiency
from tools.published.machine import machine_of
from tools.published.paper import read_published
from tools.published.speedups import compare
from tools.published.speedups_table import table

TABLE_1 = {"sd15", "sd21", "sdxl"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return compare(["sd15"], read_published(), counts=(2, 4))


def test_the_published_figures_are_fifteen_speedups_that_agree_with_their_latencies() -> None:
    published = read_published()
    models = {name: record for name, record in published["models"].items() if record["table"] == 1}
    assert models.keys() == TABLE_1
    assert sum(len(record["configs"]) for record in models.values()) == 15
    for record in published["models"].values():
        for figures in record["configs"].values():
            ratio = record["sequential_latency_s"] / figures["latency_s"]
            assert figures["speedup"] == pytest.approx(ratio, abs=0.1)  # the table rounds down more often than not


@pytest.mark.slow
def test_the_fit_meets_one_gpus_latency_and_no_more(document: dict[str, Any]) -> None:
    spec = device_spec("a5000")
    peak = {f"n{k}": 0.01 for k in range(1000)}
    efficiency = fit_efficiency(2000.0, peak, 100.0, 50, spec)
    # the first launch shows, the others hide behind their kernels
    call_ms = 1000 * 0.01 / efficiency + spec.launch_us * 1e-3 + spec.driver_ms
    assert 50 * call_ms + 100 / efficiency == pytest.approx(2000.0)
    with pytest.raises(ValueError, match="even at the device's peaks"):
        fit_efficiency(100.0, peak, 0.0, 50, spec)
    assert 0.2 < document["fitted"]["sd15"]["efficiency"] < 0.8


@pytest.mark.slow
def test_speedups_come_close_to_the_published_ones(document: dict[str, Any]) -> None:
    rows = document["rows"]
    assert [row["config"] for row in rows] == ["N2S1", "N3S1", "N4S1", "N2S2", "N3S2"]
    assert {"model", "config", "published_speedup", "simulated_speedup"} <= rows[0].keys()
    assert document["mean_absolute_error"] <= 0.08
    assert document["largest_error"] <= 0.20


@pytest.mark.slow
def test_our_plans_beat_asyncdiff_on_the_same_machine(document: dict[str, Any]) -> None:
    ours = {(row["devices"], row["asked"], row["link"]): row for row in document["ours"]}
    ways = [(2, "recommended"), (4, "recommended"), (4, "--mode async --warmup 1")]
    assert ours.keys() == {(*way, link) for way in ways for link in ("nvlink", "pcie")}
    theirs = {row["config"]: row["simulated_speedup"] for row in document["rows"]}
    for link in ("nvlink", "pcie"):
        four = ours[4, "--mode async --warmup 1", link]
        assert (four["plan"], four["mode"], four["warmup"]) == ("2 x 2 x 1", "async", 1)
        assert four["simulated_speedup"] >= 3.4
        light = four["speed_of_light"]
        assert 4.0 == light["ideal"] > light["balanced"] >= light["connected"] > light["remaining"] > 3.4
        assert light["remaining"] == pytest.approx(four["denoiser_speedup"], rel=0.01)
        recommended = ours[4, "recommended", link]
        assert (recommended["mode"], recommended["warmup"]) == ("lookahead", 2)
        assert recommended["simulated_speedup"] > 1.1 * theirs["N4S1"]
        assert ours[2, "recommended", link]["simulated_speedup"] > theirs["N2S1"]


@pytest.mark.slow
def test_the_table_says_what_is_simulated(document: dict[str, Any]) -> None:
    text = table(document)
    assert text.count("SIMULATED") == 3
    assert "x 2 x" in text
    json.dumps(document, allow_nan=False)


def test_bridges_join_pairs_only() -> None:
    spec = device_spec("a5000")
    machine = machine_of(spec, 4, "nvlink")
    fast = {pair for pair, wire in machine.links.items() if wire.gb_per_s > 40}
    assert fast == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert len({wire.gb_per_s for wire in machine_of(spec, 4, "pcie").links.values()}) == 1
