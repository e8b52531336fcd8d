"""Devices from --devices and --memory-limit: numbers, names, descriptions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from partitioner.costs.relative_speed import with_speeds
from partitioner.errors import UsageError
from partitioner.fleet import Device, as_devices, grouped, known_device, limit_memory, parse_fleet
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Input, Node, Parameter, Ref, Role, TensorMeta
from profiles.device_sheets import device_specs


def _matmul() -> TracedGraph:
    """One large matrix product: bound by compute."""
    size = 8192
    meta = TensorMeta((size, size), (size, 1), "float16")
    node = Node("y", "/linear.0", "aten.linear.default", (Ref("x"), Ref("w")), (), "", Role.LATENT, (meta,))
    return TracedGraph(
        "m", "M", (Input("x", meta, Role.LATENT),), (), (Parameter("w", "w", meta),), (node,), (Ref("y"),)
    )


def _described(tmp_path: Path, document: Any) -> str:
    path = tmp_path / "devices.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_a_number_is_so_many_of_the_default_device() -> None:
    assert parse_fleet(" 3 ", "l40s") == (known_device("l40s"),) * 3


def test_names_are_those_of_the_data_sheets_and_may_be_cut_short() -> None:
    names = [device.name for device in parse_fleet("h200, a100-80g,a100", "h200")]
    assert names == ["h200", "a100-80g", "a100-80g"]


def test_figures_are_the_data_sheets() -> None:
    device, spec = known_device("h200"), device_specs()["h200"]
    assert device.memory_bytes == spec.memory_bytes
    assert device.link_gb_per_s == spec.links[0].duplex_gb_per_s / 2 * spec.links[0].efficiency


def test_a_description_completes_what_is_known(tmp_path: Path) -> None:
    new = {"name": "b9", "speed": 2, "memory_gb": 180, "link_gb_per_s": 700.5, "latency_us": 8}
    fleet = parse_fleet(_described(tmp_path, {"devices": [new, {"name": "h200", "memory_gb": 20, "count": 2}]}), "h200")
    assert fleet[0] == Device("b9", 180e9, 700.5, 0.008, 2)
    assert [device.memory_bytes for device in fleet[1:]] == [20e9, 20e9]
    assert fleet[1].link_gb_per_s == known_device("h200").link_gb_per_s


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", "expected 1 to"),
        ("-3", "expected 1 to"),
        ("1" * 4000, "expected 1 to"),
        ("", "no device"),
        (",", "no device"),
        ("h200,,h200", "no device ''"),
        ("rtx", "no device 'rtx'"),
        ("h200," * 2000, "2001 devices"),
        ("missing.json", "cannot be read"),
    ],
)
def test_what_is_no_fleet_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        parse_fleet(text, "h200")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([], "describes no devices"),
        ({}, "describes no devices"),
        ({"devices": []}, "describes no devices"),
        ({"devices": [{"name": "h200"}], "more": 1}, "describes no devices"),
        ({"devices": [3]}, "device 0"),
        ({"devices": [{"name": "h200", "speed": 0}]}, "speed"),
        ({"devices": [{"name": "h200", "speed": "fast"}]}, "speed"),
        ({"devices": [{"name": "h200", "power": 3}]}, "power"),
        ({"devices": [{"name": "../x"}]}, "name"),
        ({"devices": [{"name": "b9", "speed": 1}]}, "memory_gb, link_gb_per_s, latency_us"),
        ({"devices": [{"name": "h200", "count": 800}, {"name": "h200", "count": 800}]}, "1600 devices"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, document: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        parse_fleet(_described(tmp_path, document), "h200")


def test_speeds_are_relative_to_the_reference() -> None:
    fleet = with_speeds(parse_fleet("h200,a100", "h200"), _matmul(), "h200")
    peaks = [device_specs()[name].peak_tflops["float16"] for name in ("a100-80g", "h200")]
    shares = [device_specs()[name].efficiency.matmul for name in ("a100-80g", "h200")]
    assert fleet[0].speed == 1.0
    assert fleet[1].speed == pytest.approx(peaks[0] * shares[0] / (peaks[1] * shares[1]))


def test_an_unknown_speed_is_refused() -> None:
    with pytest.raises(UsageError, match="no data sheet of b9"):
        with_speeds((Device("b9", 1.0, 1.0, 0.0),), _matmul(), "h200")


def test_pairs_are_as_good_as_the_worse_of_both() -> None:
    fleet = (
        Device("a", 10, 5, 0.1, 1.0), Device("b", 20, 9, 0.2, 4.0), Device("c", 30, 7, 0.3, 2.0),
        Device("d", 40, 8, 0.1, 3.0), Device("e", 50, 1, 0.0, 0.5),
    )  # fmt: skip
    devices, seats = grouped(fleet, 2)
    assert seats == [(1, 3), (2, 0)]
    assert devices.names == ("b+d", "c+a")
    assert devices.speeds == (3.0, 1.0)
    assert devices.memory_bytes == (20, 10)
    assert devices.link_gb_per_s == (8, 5)
    assert devices.latency_ms == (0.2, 0.3)


def test_a_group_of_three_is_as_good_as_its_worst_and_one_device_is_its_own() -> None:
    fleet = tuple(
        Device(name, memory, 9, 0.1, speed) for name, memory, speed in (("a", 9, 1.0), ("b", 5, 3.0), ("a", 7, 2.0))
    )
    devices, seats = grouped(fleet, 3)
    assert (seats, devices.names, devices.speeds, devices.memory_bytes) == ([(1, 2, 0)], ("b+a",), (1.0,), (5,))
    devices, seats = grouped(fleet, 1)
    assert (seats, devices) == ([(0,), (1,), (2,)], as_devices(fleet))


def test_a_memory_limit_only_lowers() -> None:
    fleet = limit_memory((Device("a", 10, 1, 0, 1.0), Device("b", 30, 1, 0, 1.0)), 20)
    assert [device.memory_bytes for device in fleet] == [10, 20]
    assert as_devices(fleet).memory_bytes == (10, 20)
