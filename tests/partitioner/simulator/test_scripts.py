"""Scripts fit their machine; what they do is seen in test_simulate.py."""

from __future__ import annotations

import pytest

from partitioner.simulator.machine import FREE, Machine
from tests.support.simulated import run


def test_a_machine_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="1 x 2 ranks need as many devices; the machine has 3"):
        run([1.0, 1.0], "exact", machine=Machine.uniform(3, FREE))
