"""start_ranks: each transport has its ranks, each rank its seat; what is refused before is in test_engine."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from runtime.devices.places import Place
from runtime.errors import PlanMismatch
from runtime.options import EngineOptions
from runtime.ranks.base import Ranks
from runtime.ranks.emulated import EmulatedRanks
from runtime.ranks.launch import LocalLauncher
from runtime.ranks.start import start_ranks
from runtime.ranks.threads import ThreadRanks
from tests.support.engines import toy_plan
from tests.support.toy_plans import DENOISER


@pytest.mark.parametrize(("transport", "kind"), [("emulation", EmulatedRanks), ("threads", ThreadRanks)])
def test_a_transport_has_its_kind_of_ranks(transport: str, kind: type[Ranks]) -> None:
    plan = toy_plan(DENOISER, 2, branches=2, predictor="linear")
    ranks = start_ranks([plan], EngineOptions(transport=transport, check_finite=True), ["cpu"] * 4, ["cpu"])
    try:
        assert isinstance(ranks, kind)
        setup = ranks.workers[0].setup
        # rank 0 has the last component of branch 0, and takes the results of the same component of branch 1
        assert (setup.rank, setup.component, setup.ranks_of, setup.result_ranks) == (0, 1, (1, 0), (0, 2))
        assert (setup.predictor, setup.check_finite, setup.device) == ("linear", True, "cpu")
    finally:
        ranks.close()


def test_an_option_overrides_the_plan() -> None:
    options = EngineOptions(transport="emulation", predictor="hold")
    ranks = start_ranks([toy_plan(DENOISER)], options, ["cpu"] * 2, [None])
    assert ranks.workers[0].setup.predictor == "hold"
    ranks.close()


def test_devices_of_other_machines_are_not_looked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(LocalLauncher):
        def places(self, devices: Sequence[str], timeout_s: float) -> list[Place]:
            raise PlanMismatch(f"asked for {', '.join(devices)}")

    def look(device: str) -> int:
        raise AssertionError(f"{device} is looked at here")

    monkeypatch.setattr("runtime.ranks.start.torchrun_launcher", lambda ranks: Elsewhere())
    monkeypatch.setattr("runtime.devices.places.free_bytes", look)
    with pytest.raises(PlanMismatch, match="asked for cuda:0, cuda:7"):
        start_ranks([toy_plan(DENOISER)], EngineOptions(transport="processes"), ["cuda:0", "cuda:7"], [None])
