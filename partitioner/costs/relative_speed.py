"""with_speeds: how fast a fleet's devices are relative to the device that the costs hold for."""

from __future__ import annotations

from dataclasses import replace

from partitioner.costs.roofline import estimate
from partitioner.errors import UsageError
from partitioner.fleet import Device, Fleet
from partitioner.graph.ir import TracedGraph
from profiles.device_sheets import device_specs


def with_speeds(fleet: Fleet, graph: TracedGraph, reference: str) -> Fleet:
    """The same devices, each with its speed relative to the reference, for this graph, by both data sheets' rooflines.

    A device whose speed is given keeps it.

    Args:
        fleet: The devices.
        graph: The graph that they are to run.
        reference: Name of the device that the costs hold for; devices of that name have speed 1, data sheet or not.

    Raises:
        UsageError: A speed is not given, and one of the two data sheets is missing.
    """
    known: dict[str, float] = {reference: 1.0}

    def speed(device: Device) -> float:
        if device.speed is not None:
            return device.speed
        if device.name not in known:
            for name in (device.name, reference):
                if name not in device_specs():
                    raise UsageError(
                        f"the speed of {device.name} relative to {reference} is not known, for there is no data sheet "
                        f"of {name}; describe the devices in a JSON file, each with its speed"
                    )
            known[device.name] = _total_ms(graph, reference) / _total_ms(graph, device.name)
        return known[device.name]

    return tuple(replace(device, speed=speed(device)) for device in fleet)


def _total_ms(graph: TracedGraph, device_name: str) -> float:
    return sum(cost.ms for cost in estimate(graph, device_name).nodes.values())
