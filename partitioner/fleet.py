"""Fleet: the devices that a plan is for, from `--devices 4`, `--devices h200,a100-80g` or a JSON description.

A description is

    {"devices": [{"name": "b200", "count": 2, "speed": 2.0, "memory_gb": 180, "link_gb_per_s": 700, "latency_us": 8}]}

    count            how many such devices; 1 where it is left out
    speed            relative to the device that the costs hold for
    memory_gb        in 1e9 bytes
    link_gb_per_s    1e9 bytes per second that really arrive, in one direction
    latency_us       of one message

What else is left out comes from the data sheet of that name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from partitioner.errors import UsageError
from partitioner.search.devices import Devices
from profiles.device_sheets import device_specs
from profiles.json_files import JsonFileError, read_json

MAX_DEVICES = 1024
MAX_DESCRIPTION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a fleet.

    Attributes:
        name: Of its data sheet, where it has one.
        memory_bytes: What a component on it may take.
        link_gb_per_s: 1e9 bytes per second that arrive, in one direction.
        latency_ms: Of one message.
        speed: Relative to the device that the costs hold for; None until ``with_speeds`` takes it from the data sheets.
    """

    name: str
    memory_bytes: float
    link_gb_per_s: float
    latency_ms: float
    speed: float | None = None


Fleet = tuple[Device, ...]


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")]
    count: Annotated[int, Field(ge=1, le=MAX_DEVICES)] = 1
    speed: Annotated[float, Field(gt=0, le=1e6)] | None = None
    memory_gb: Annotated[float, Field(gt=0, le=1e9)] | None = None
    link_gb_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    latency_us: Annotated[float, Field(ge=0, le=1e9)] | None = None


def parse_fleet(devices: Fleet | str | int, default_device: str) -> Fleet:
    """The devices that a user names; see parse_devices. A number means so many of the default device.

    >>> [device.name for device in parse_fleet(2, "l40s")]
    ['l40s', 'l40s']
    """
    if isinstance(devices, tuple) and devices and all(isinstance(device, Device) for device in devices):
        parsed: Fleet | int = devices
    elif isinstance(devices, (int, str)) and not isinstance(devices, bool):
        parsed = parse_devices(str(devices))
    else:
        raise UsageError(f"devices is {devices!r}; expected a number, a text such as 'h200,a100-80g', or a Fleet")
    return (known_device(default_device),) * parsed if isinstance(parsed, int) else parsed


def parse_devices(text: str) -> Fleet | int:
    """Parse what a user writes after ``--devices``.

    Args:
        text: A number, a comma-separated list of data sheets' names, or the name of a JSON file.

    Returns:
        The devices; for a number that number, since it does not say which device is meant.

    Raises:
        UsageError: It is none of these, or there are too many devices.

    >>> parse_devices("4")
    4
    >>> [device.name for device in parse_devices("h200,a100-80g")]
    ['h200', 'a100-80g']
    """
    text = text.strip()
    if re.fullmatch(r"[+-]?[0-9]+", text):
        count = int(text) if len(text) < 12 else MAX_DEVICES + 1
        if not 1 <= count <= MAX_DEVICES:
            shown = text if len(text) <= 20 else f"{text[:20]}…"
            raise UsageError(f"--devices {shown}: expected 1 to {MAX_DEVICES} devices")
        return count
    if text.endswith(".json"):
        return _described_fleet(Path(text))
    names = [name.strip() for name in text.split(",")]
    if len(names) > MAX_DEVICES:
        raise UsageError(f"--devices names {len(names)} devices; expected 1 to {MAX_DEVICES}")
    return tuple(known_device(name) for name in names)


def known_device(name: str) -> Device:
    """The device of a data sheet, by its name or by the start of it where only one begins so ("a100").

    Raises:
        UsageError: No data sheet has that name, or more than one begins with it.
    """
    specs = device_specs()
    found = [name] if name in specs else [known for known in specs if name and known.startswith(name)]
    if len(found) != 1:
        raise UsageError(
            f"no device {name[:80]!r}; expected a number, names among {', '.join(specs)}, or a file.json that "
            "describes the devices"
        )
    name, spec = found[0], specs[found[0]]
    link = spec.link()
    return Device(name, spec.memory_bytes, link.gb_per_s, link.latency_ms)


def limit_memory(fleet: Fleet, memory_bytes: float | None) -> Fleet:
    """The same devices with at most so much memory each; None: with all that they have."""
    if memory_bytes is None:
        return fleet
    return tuple(replace(device, memory_bytes=min(device.memory_bytes, memory_bytes)) for device in fleet)


def grouped(fleet: Fleet, size: int) -> tuple[Devices, list[tuple[int, ...]]]:
    """Put devices of like speed together, so many in each group; the slowest, which fill no group, are left out.

    Returns:
        One device per group, as good as the worst in it, the fastest group first (in the fleet's order where a group is
        one device); and the numbers of each group's devices in the fleet.
    """
    order = sorted(range(len(fleet)), key=lambda d: (-_speed(fleet[d]), d)) if size > 1 else list(range(len(fleet)))
    groups = [tuple(order[i : i + size]) for i in range(0, len(order) - size + 1, size)]
    return as_devices([_worst([fleet[d] for d in group]) for group in groups]), groups


def _worst(devices: Sequence[Device]) -> Device:
    """A device as good as the worst of some in each respect."""
    return Device(
        name="+".join(dict.fromkeys(device.name for device in devices)),
        memory_bytes=min(device.memory_bytes for device in devices),
        link_gb_per_s=min(device.link_gb_per_s for device in devices),
        latency_ms=max(device.latency_ms for device in devices),
        speed=min(map(_speed, devices)),
    )


def as_devices(fleet: Sequence[Device]) -> Devices:
    """The devices as the solver takes them; every speed must be known."""
    return Devices(
        names=tuple(device.name for device in fleet),
        speeds=tuple(map(_speed, fleet)),
        memory_bytes=tuple(device.memory_bytes for device in fleet),
        link_gb_per_s=tuple(device.link_gb_per_s for device in fleet),
        latency_ms=tuple(device.latency_ms for device in fleet),
    )


def _speed(device: Device) -> float:
    if device.speed is None:
        raise ValueError(f"the speed of {device.name} is not known yet; see with_speeds")
    return device.speed


def _described_fleet(path: Path) -> Fleet:
    try:
        document = read_json(path, MAX_DESCRIPTION_BYTES)
    except JsonFileError as error:
        raise UsageError(str(error)) from None
    records = document.get("devices") if isinstance(document, dict) else None
    if not isinstance(records, list) or not 1 <= len(records) <= MAX_DEVICES or set(document) != {"devices"}:  # type: ignore[call-overload]
        raise UsageError(f'{path} describes no devices; expected {{"devices": [{{"name": "h200", …}}, …]}}')
    fleet: list[Device] = []
    for number, record in enumerate(records):
        try:
            described = _Described.model_validate(record)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part)[:80] for part in first["loc"])
            raise UsageError(f"{path}: device {number}: {where}: {first['msg']}") from None
        fleet += [_described_device(path, described)] * described.count
    if len(fleet) > MAX_DEVICES:
        raise UsageError(f"{path} describes {len(fleet)} devices; expected 1 to {MAX_DEVICES}")
    return tuple(fleet)


def _described_device(path: Path, record: _Described) -> Device:
    known = known_device(record.name) if record.name in device_specs() else None
    if known is None:
        missing = [name for name in _Described.model_fields if name != "count" and getattr(record, name) is None]
        if missing:
            raise UsageError(f"{path}: there is no data sheet of {record.name}; give its {', '.join(missing)}")
        known = Device(record.name, 0.0, 0.0, 0.0)
    return Device(
        name=record.name,
        memory_bytes=known.memory_bytes if record.memory_gb is None else record.memory_gb * 1e9,
        link_gb_per_s=known.link_gb_per_s if record.link_gb_per_s is None else record.link_gb_per_s,
        latency_ms=known.latency_ms if record.latency_us is None else record.latency_us * 1e-3,
        speed=record.speed,
    )
