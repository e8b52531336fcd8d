"""Data sheets of known devices: peaks, memory, links; the numbers and their sources are in devices.json."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from profiles.json_files import read_json
from profiles.records import Record

DEFAULT_DEVICE = "h200"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class UnknownDeviceError(ValueError):
    """No data sheet has that name; the message names the choices."""


class LinkSheet(Record):
    """How one device reaches another. duplex_gb_per_s counts both directions, as data sheets do."""

    name: str
    duplex_gb_per_s: Positive
    latency_us: Positive
    efficiency: Share

    def transfer_ms(self, size_bytes: int) -> float:
        """Time in ms of one message in one direction: latency, then size over the bandwidth that is reached."""
        return self.latency_us * 1e-3 + size_bytes / (self.duplex_gb_per_s / 2 * self.efficiency * 1e6)


class Efficiency(Record):
    """Share of its peak that a class of operators reaches."""

    conv: Share
    matmul: Share
    attention: Share
    memory: Share


class DeviceSpec(Record):
    """One device. peak_tflops: dense 1e12 operations per second, by dtype name and "tf32"; links: fastest first.

    launch_us: host time to launch one kernel. driver_ms: guidance and a step of the scheduler, which the pipeline does
    itself between two calls of the denoiser.
    """

    title: str
    peak_tflops: Mapping[str, Positive]
    memory_gb_per_s: Positive
    memory_bytes: Annotated[int, Field(gt=0)]
    efficiency: Efficiency
    launch_us: Positive
    driver_ms: Positive
    links: Annotated[tuple[LinkSheet, ...], Field(min_length=1, strict=False)]
    source: str

    def link(self, name: str | None = None) -> LinkSheet:
        """The link of that name, or the fastest one; UnknownDeviceError names those there are."""
        for link in self.links:
            if name is None or link.name == name:
                return link
        raise UnknownDeviceError(f"{self.title} has no link {name!r}; it has {', '.join(k.name for k in self.links)}")


@cache
def device_specs() -> Mapping[str, DeviceSpec]:
    """Every known device by name."""
    document = read_json(Path(__file__).with_name("devices.json"), 1_000_000)
    assert isinstance(document, dict)
    return {name: DeviceSpec.model_validate(record) for name, record in document["devices"].items()}


def device_spec(name: str) -> DeviceSpec:
    """The data sheet of a device; UnknownDeviceError names the choices."""
    specs = device_specs()
    if name not in specs:
        raise UnknownDeviceError(f"no data sheet for device {name!r}; known devices: {', '.join(specs)}")
    return specs[name]


def match_device(device_name: str) -> str | None:
    """The known device that a driver's name means ("NVIDIA A100-SXM4-80GB" -> "a100-80g"), or None."""
    squeezed = device_name.lower().replace(" ", "")
    return next((name for name in device_specs() if name.split("-")[0] in squeezed), None)
