"""Data sheets of known devices: peaks, memory and links; the numbers and their sources are in devices.json."""

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
    """How one device reaches another.

    Attributes:
        name: "nvlink", "pcie" or "gloo".
        duplex_gb_per_s: Bandwidth in 1e9 bytes per second, both directions together, as data sheets give it.
        latency_us: Time from sending to receiving an empty message.
        efficiency: Share of the bandwidth that messages reach.
    """

    name: str
    duplex_gb_per_s: Positive
    latency_us: Positive
    efficiency: Share

    @property
    def gb_per_s(self) -> float:
        """1e9 bytes per second that arrive in one direction."""
        return self.duplex_gb_per_s / 2 * self.efficiency

    @property
    def latency_ms(self) -> float:
        """Time in ms from sending to receiving an empty message."""
        return self.latency_us * 1e-3


class Efficiency(Record):
    """Share of its peak that a class of operators reaches."""

    conv: Share
    matmul: Share
    attention: Share
    memory: Share


class DeviceSpec(Record):
    """The data sheet of one device.

    Attributes:
        title: Its full name.
        peak_tflops: 1e12 operations per second without sparsity, by dtype name and "tf32"; a multiply-add is two.
        memory_gb_per_s: Bandwidth of its memory in 1e9 bytes per second; memory_bytes: how much of it there is.
        efficiency: Shares of these peaks that operators reach.
        launch_us: Host time to launch one kernel.
        driver_ms: The pipeline's own work between two calls of the denoiser: guidance and a step of the sampler.
        links: Its links to other devices, the fastest first.
        source: Where the numbers are from.
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
        """The link of that name, by default the fastest.

        Raises:
            UnknownDeviceError: It has no link of that name; the message names those that it has.
        """
        for link in self.links:
            if name is None or link.name == name:
                return link
        raise UnknownDeviceError(f"{self.title} has no link {name!r}; it has {', '.join(k.name for k in self.links)}")


@cache
def device_specs() -> Mapping[str, DeviceSpec]:
    """The data sheets of every known device, by name."""
    document = read_json(Path(__file__).with_name("devices.json"), 1_000_000)
    assert isinstance(document, dict)
    return {name: DeviceSpec.model_validate(record) for name, record in document["devices"].items()}


def device_spec(name: str) -> DeviceSpec:
    """The data sheet of a device.

    Raises:
        UnknownDeviceError: No device has that name; the message names the choices.

    >>> device_spec("a100-80g").peak_tflops["float16"]
    312.0
    """
    specs = device_specs()
    if name not in specs:
        raise UnknownDeviceError(f"no data sheet for device {name!r}; known devices: {', '.join(specs)}")
    return specs[name]


def match_device(device_name: str) -> str | None:
    """The known device that a graphics driver calls so; None where there is no data sheet of it.

    >>> match_device("NVIDIA A100-SXM4-80GB")
    'a100-80g'
    """
    squeezed = device_name.lower().replace(" ", "")
    return next((name for name in device_specs() if name.split("-")[0] in squeezed), None)
