"""Every recorded profile loads, is complete, says where it comes from, and sums to its measured whole."""

from __future__ import annotations

from pathlib import Path

import pytest

import profiles
from partitioner.costs.lookup import apply_profile
from partitioner.graph.export import fake_mode, trace
from profiles.cost_profile import CostProfile
from profiles.json_files import canonical_bytes
from tools.denoisers import DENOISERS

FOLDER = Path(profiles.__file__).parent / "data"
FILES = sorted(FOLDER.glob("*.json"))


def test_the_small_denoisers_are_recorded_on_a_cpu() -> None:
    assert {path.name for path in FILES} >= {f"cpu-{name}.json" for name in DENOISERS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_profile_is_whole_and_canonical(path: Path) -> None:
    profile = CostProfile.load(path)
    assert canonical_bytes(profile.model_dump(mode="json")) == path.read_bytes()
    if profile.device == "cpu":
        assert "tools.record_profile" in profile.command
        assert path.name in profile.command
    else:
        assert f"tools.gpu_suite --part profile-{profile.checks[0].model}" in profile.command
    assert profile.date.startswith("20")
    assert profile.device_name
    assert "torch" in profile.versions
    assert len(profile.signatures) > 40
    for cost in profile.signatures.values():
        assert cost.median_ms > 0 or profile.mode == "compiled"  # where calling it is all that takes time
        assert (cost.launch_ms > 0) == (profile.device == "cuda" or profile.mode == "compiled")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_nodes_sum_to_the_measured_whole(path: Path) -> None:
    profile = CostProfile.load(path)
    assert profile.checks
    for check in profile.checks:
        # operators that are compiled one by one do not show what fusing them saves
        assert -0.1 < check.error < (1.0 if profile.mode == "compiled" else 0.1)
        assert check.whole_iqr_ms < 0.1 * check.whole_ms, "recorded on a busy machine"
        assert f"{check.summed_ms:.1f} ms | {check.whole_ms:.1f} ms" in (FOLDER / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15-like", "dit-like"])
def test_recorded_profile_prices_its_denoiser(name: str) -> None:
    profile = CostProfile.load(FOLDER / f"cpu-{name}.json")
    with fake_mode():
        module, inputs, roles = DENOISERS[name]()
        graph = trace(module, inputs, roles, model=name)
    costs = apply_profile(profile, graph)
    assert costs.covered > 0.9, "torch or diffusers trace it otherwise now; record it again"
    assert sum(cost.ms for cost in costs.nodes.values()) == pytest.approx(profile.checks[0].summed_ms, rel=0.1)
