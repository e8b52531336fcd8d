"""The machine of AsyncDiff's paper: RTX A5000s by their data sheet, NVLink within pairs, PCIe between them."""

from __future__ import annotations

from dataclasses import replace

from partitioner.simulator.machine import Link, Machine
from profiles.device_sheets import DeviceSpec


def link_of(spec: DeviceSpec, name: str) -> Link:
    """One direction of a link of a device's data sheet, such as "pcie"."""
    link = spec.link(name)
    return Link(link.latency_ms, link.gb_per_s)


def machine_of(spec: DeviceSpec, ranks: int, link: str) -> Machine:
    """Equal GPUs joined by PCIe. With link "nvlink", bridges join ranks 0 and 1, ranks 2 and 3, and so on."""
    machine = Machine.uniform(ranks, link_of(spec, "pcie"), launch_ms=spec.launch_us * 1e-3, driver_ms=spec.driver_ms)
    if link == "pcie":
        return machine
    bridges = {(a, b): link_of(spec, link) for a, b in machine.links if a // 2 == b // 2}
    return replace(machine, links={**machine.links, **bridges})
