"""Which source of costs the options choose, and what is measured only once."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitioner.costs import model as cost_model
from partitioner.costs.model import CostModel, GivenCosts, choose_cost_model
from partitioner.costs.roofline import estimate
from partitioner.errors import UsageError
from partitioner.fleet import parse_devices
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Input, Node, Ref, Role, TensorMeta
from profiles.cost_profile import CostProfile


def _relu(rows: int) -> TracedGraph:
    meta = TensorMeta((rows, 64), (64, 1), "float32")
    node = Node("y", "/relu.0", "aten.relu.default", (Ref("x"),), (), "", Role.LATENT, (meta,))
    return TracedGraph("m", "M", (Input("x", meta, Role.LATENT),), (), (), (node,), (Ref("y"),))


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_model, "_has_gpu", lambda: False)


@pytest.mark.parametrize(
    ("profile", "device", "devices", "reference", "live"),
    [
        (None, None, "4", "h200", None),
        (None, "l40s", "4", "l40s", None),
        (None, "a100", "4", "a100-80g", None),
        (None, None, "a5000,h200", "a5000", None),
        (None, "h200", "a5000,h200", "h200", None),
        ("cpu", None, "4", "cpu", "cpu"),
        ("cpu", "l40s", "4", "l40s", "cpu"),
    ],
)
def test_what_is_chosen(
    profile: str | None, device: str | None, devices: str, reference: str, live: str | None
) -> None:
    chosen = choose_cost_model(profile, device, parse_devices(devices))
    assert (chosen.reference, chosen.live) == (reference, live)


def test_a_gpu_is_measured_on_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_model, "_has_gpu", lambda: True)
    monkeypatch.setattr(cost_model, "_name_of", lambda live: "NVIDIA L40S")
    assert (choose_cost_model(None, None).live, choose_cost_model(None, None).reference) == ("cuda:0", "l40s")
    assert choose_cost_model(None, "h100").live is None
    assert choose_cost_model(None, None, parse_devices("l40s,l40s")).live is None
    monkeypatch.setattr(cost_model, "_name_of", lambda live: "Riva 128")
    with pytest.raises(UsageError, match="no data sheet of Riva 128; name the most similar device with --device"):
        choose_cost_model(None, None)


@pytest.mark.parametrize("profile", ["cuda:99", "none.json", "gpu"])
def test_a_source_that_is_not_there_is_refused(profile: str) -> None:
    with pytest.raises(UsageError):
        choose_cost_model(profile, None)


def test_without_a_profile_costs_are_the_roofline() -> None:
    assert CostModel("h200")(_relu(8)) == estimate(_relu(8), "h200")


def test_what_was_measured_is_kept_for_both_graphs_and_saved(tmp_path: Path) -> None:
    price = CostModel("cpu", live="cpu", command="test")
    first = price(_relu(8))
    assert first.source == "measured"
    price(_relu(4))
    assert price(_relu(8)).nodes == first.nodes
    price.save(tmp_path / "p.json")
    saved = CostProfile.load(tmp_path / "p.json")
    assert len(saved.signatures) == 2
    reread = CostModel("cpu", profile=saved)
    assert (reread.kind, reread(_relu(8)).nodes) == ("profile", first.nodes)
    with pytest.raises(UsageError, match="exists"):
        price.save(tmp_path / "p.json")


def test_a_roofline_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was measured"):
        CostModel("h200").save(tmp_path / "p.json")


def test_a_source_says_its_kind_and_the_drivers_work() -> None:
    assert (CostModel("a5000").kind, CostModel("a5000").driver_ms) == ("data sheet", 0.5)
    assert (CostModel("cpu", live="cpu").kind, CostModel("cpu", live="cpu").driver_ms) == ("measured", 0.12)


def test_costs_of_ones_own_need_no_data_sheet() -> None:
    given = GivenCosts(lambda graph: estimate(graph, "cpu"), "my board", driver_ms=2.0)
    assert (given.kind, given.reference, given.driver_ms) == ("given", "my board", 2.0)
    assert given(_relu(8)) == estimate(_relu(8), "cpu")
    with pytest.raises(UsageError, match="nothing was measured"):
        given.save(Path("p.json"))
