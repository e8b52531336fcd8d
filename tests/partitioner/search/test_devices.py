"""Devices that are refused, and kinds of devices."""

from __future__ import annotations

import pytest

from partitioner.errors import UsageError
from partitioner.search.devices import Devices


@pytest.mark.parametrize(
    ("count", "figures", "message"),
    [
        (0, {}, "at least one"),
        (2, {"speed": 0.0}, "above zero"),
        (2, {"memory_bytes": -1.0}, "above zero"),
        (2, {"link_gb_per_s": 0.0}, "above zero"),
        (2, {"latency_ms": -0.1}, "not negative"),
    ],
)
def test_nonsense_devices_are_refused(count: int, figures: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Devices.equal(count, **figures)  # type: ignore[arg-type]


def test_kinds_of_devices() -> None:
    devices = Devices(("a", "b", "a"), (1.0, 2.0, 1.0), (1.0,) * 3, (1.0,) * 3, (0.0,) * 3)
    assert devices.kinds == ((0, 2), (1,))
    assert devices.reordered((1, 0, 2)).names == ("b", "a", "a")
