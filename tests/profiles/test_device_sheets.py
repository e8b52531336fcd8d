"""Data sheets load, are complete, and an unknown name is answered with the choices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

import profiles.device_sheets
from profiles.device_sheets import (
    DEFAULT_DEVICE,
    DeviceSpec,
    LinkSheet,
    UnknownDeviceError,
    device_spec,
    device_specs,
    match_device,
)


def test_every_promised_device_is_there() -> None:
    assert list(device_specs()) == ["h200", "h100", "a100-80g", "l40s", "a5000", "rtx3090", "rtx4090", "cpu"]
    assert DEFAULT_DEVICE == "h200"
    for name, spec in device_specs().items():
        assert {"float32", "float16", "bfloat16"} <= spec.peak_tflops.keys()
        assert ("tf32" in spec.peak_tflops) == (name != "cpu")
        assert len(spec.source) > 20


def test_data_sheet_figures_that_results_hang_on() -> None:
    a5000 = device_spec("a5000")
    assert a5000.peak_tflops["float16"] == 111.1
    assert a5000.link().name == "nvlink"
    assert a5000.link("nvlink").duplex_gb_per_s == 112.5
    assert a5000.link("pcie").duplex_gb_per_s == 64
    assert [link.name for link in device_spec("l40s").links] == ["pcie"]
    assert [link.name for link in device_spec("rtx4090").links] == ["pcie"]


def test_links_come_fastest_first() -> None:
    for spec in device_specs().values():
        speeds = [link.duplex_gb_per_s * link.efficiency for link in spec.links]
        assert speeds == sorted(speeds, reverse=True)
        assert spec.link() == spec.links[0]


def test_a_link_has_half_its_bandwidth_in_one_direction() -> None:
    link = LinkSheet(name="x", duplex_gb_per_s=100, latency_us=10, efficiency=0.5)
    assert (link.latency_ms, link.gb_per_s) == (pytest.approx(0.01), 25.0)


def test_unknown_names_are_answered_with_the_choices() -> None:
    with pytest.raises(UnknownDeviceError, match=r"'h300'.*h200.*rtx4090, cpu"):
        device_spec("h300")
    with pytest.raises(UnknownDeviceError, match=r"no link 'nvlink'; it has pcie"):
        device_spec("l40s").link("nvlink")


@pytest.mark.parametrize(
    ("driver_name", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA RTX A5000", "a5000"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla T4", None),
    ],
)
def test_driver_names_are_matched(driver_name: str, name: str | None) -> None:
    assert match_device(driver_name) == name


def test_records_are_strict() -> None:
    path = Path(profiles.device_sheets.__file__).with_name("devices.json")
    record = json.loads(path.read_text())["devices"]["cpu"]
    changes: list[dict[str, object]] = [
        {"memory_gb_per_s": 0},
        {"memory_gb_per_s": float("inf")},
        {"links": []},
        {"speed": 1},
    ]
    for change in changes:
        with pytest.raises(ValidationError):
            DeviceSpec.model_validate(record | change)
