"""Speed of light: which part of the ideal speed-up each loss takes: balance, communication, warm-up."""

from __future__ import annotations

from dataclasses import dataclass, replace

from partitioner.simulator.machine import FREE, Machine
from partitioner.simulator.simulate import Simulation


@dataclass(frozen=True, slots=True)
class SpeedOfLight:
    """Speed-ups over one device, each after one more loss.

    ideal: as if the work were divided evenly; balanced: a steady step with free communication; connected: with its
    communication; remaining: the whole trajectory, warm-up and all. balanced can be above ideal where branches share a
    call's rows: a part of them may cost less than that part of a call.
    """

    ideal: float
    balanced: float
    connected: float
    remaining: float
    calls: int

    def __str__(self) -> str:
        above = round(self.balanced, 2) > round(self.ideal, 2)
        why = " (above the ideal: a part of a call's rows costs less than its part of the call)" if above else ""
        return (
            f"ideal {self.ideal:.2f} x, balance leaves {self.balanced:.2f} x{why}, "
            f"communication {self.connected:.2f} x, warm-up {self.remaining:.2f} x over {self.calls} steps"
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
