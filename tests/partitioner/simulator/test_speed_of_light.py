"""Which part of the ideal speed-up each loss takes."""

from __future__ import annotations

import pytest

from partitioner.simulator.machine import Link, Machine
from partitioner.simulator.speed_of_light import SpeedOfLight, speed_of_light, without_communication
from tests.support.simulated import run


def test_speed_of_light_names_each_loss() -> None:
    machine = Machine.uniform(2, Link(0.0, 1.0), driver_ms=0.0)  # a tensor takes 4 ms
    played = run([6.0, 4.0], "async", machine=machine)
    unhindered = run([6.0, 4.0], "async", machine=without_communication(machine))
    light = speed_of_light(played, unhindered, machine, sequential_ms=10.0)
    assert light.ideal == 2.0
    assert light.balanced == pytest.approx(10 / 6)
    assert light.connected == pytest.approx(10 / 9)  # the round trip: (6 + 4 + 4 + 4) / 2
    assert light.remaining < light.connected
    assert str(light) == "ideal 2.00 x, balance leaves 1.67 x, communication 1.11 x, warm-up 1.09 x over 40 steps"


def test_a_balance_above_the_ideal_is_explained() -> None:
    light = SpeedOfLight(ideal=4.0, balanced=4.02, connected=3.9, remaining=3.5, calls=50)
    assert str(light) == (
        "ideal 4.00 x, balance leaves 4.02 x (above the ideal: a part of a call's rows costs less than its "
        "part of the call), communication 3.90 x, warm-up 3.50 x over 50 steps"
    )
