"""AsyncDiff's own code, simulated."""

from __future__ import annotations

import pytest

from partitioner.baselines.asyncdiff_simulation import simulate_asyncdiff
from partitioner.simulator.machine import Machine
from tests.support.simulated import BYTES_MS, WIRE, chain

MODULES = [["m0"], ["m1"], ["m2"]]
COSTS = {"n0": 3.0, "n1": 5.0, "n2": 4.0, "n3": 0.5}  # n3 is in no module: every rank computes it


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("warmup", [1, 2, 3])
def test_asyncdiff_blocks_on_every_modules_output(stride: int, warmup: int) -> None:
    ranks = 3 + stride - 1
    machine = Machine.uniform(ranks, WIRE, driver_ms=0.1)
    played = simulate_asyncdiff(chain(4), MODULES, COSTS, machine, calls=101, stride=stride, warmup=warmup)
    broadcast = BYTES_MS + (ranks - 1) * 0.25
    assert played.step_ms == pytest.approx((3 * broadcast + 5 + broadcast) / stride + 0.5 + 0.1)
    assert played.exact_step_ms == pytest.approx(12.5 + 0.1)
    computing = [rank.compute_ms for rank in played.ranks]
    own = [3.0, 5.0, 4.0, 4.0][:ranks]
    assert computing == pytest.approx([ms / stride + 0.5 for ms in own])


def test_asyncdiff_needs_a_rank_more_for_stride_two() -> None:
    with pytest.raises(ValueError, match="one more with 2"):
        simulate_asyncdiff(chain(4), MODULES, COSTS, Machine.uniform(3, WIRE), calls=10, stride=2)
