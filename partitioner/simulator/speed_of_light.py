"""Where the time goes: speed-ups over one device, each after one more loss."""

from __future__ import annotations

from dataclasses import dataclass, replace

from partitioner.simulator.machine import FREE, Machine
from partitioner.simulator.simulate import Simulation


@dataclass(frozen=True, slots=True)
class SpeedOfLight:
    """Where the time goes: speed-ups over one device, each after one more loss.

    ideal: as if the work were split perfectly; balanced: a steady step with free communication; connected: with it;
    remaining: the whole trajectory, warm-up and all.
    """

    ideal: float
    balanced: float
    connected: float
    remaining: float
    calls: int

    def __str__(self) -> str:
        return (
            f"ideal {self.ideal:.2f} x, balance leaves {self.balanced:.2f} x, communication {self.connected:.2f} x, "
            f"warm-up {self.remaining:.2f} x over {self.calls} steps"
        )


def without_communication(machine: Machine) -> Machine:
    """The same machine with links that take no time."""
    return replace(machine, links=dict.fromkeys(machine.links, FREE))


def speed_of_light(played: Simulation, unhindered: Simulation, machine: Machine, sequential_ms: float) -> SpeedOfLight:
    """Where the time goes in ``played``. unhindered: the same, played without communication; sequential_ms: one whole
    call on the fastest device, without the driver's work."""
    call_ms = sequential_ms + machine.driver_ms
    return SpeedOfLight(
        ideal=sum(machine.speeds) / max(machine.speeds),
        balanced=call_ms / unhindered.step_ms,
        connected=call_ms / played.step_ms,
        remaining=call_ms * played.calls / played.trajectory_ms,
        calls=played.calls,
    )
