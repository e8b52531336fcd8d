"""partitioner.report: the documented keys with their meaning."""

from __future__ import annotations

import json

import pytest

from partitioner.planning.sampling_setup import ANY, SamplingSetup
from partitioner.report import describe, light_of
from tests.support.toy_plan import toy_plan

# What docs and scripts rely on: `partition-model --json`.
KEYS = {
    "plan", "model", "fingerprint", "devices", "branches", "period", "warmup", "predictor", "cost_source",
    "sequential_ms", "step_ms", "lower_bound_ms", "gap", "speedup_step", "speedup_trajectory", "steps",
    "bytes_per_step", "staleness", "macs", "components", "speed_of_light", "guidance_style", "streams", "branch_rows",
    "calls_per_step", "images", "guidance_scale",
}  # fmt: skip
COMPONENT_KEYS = {
    "rank", "branch", "nodes", "pieces", "compute_ms", "macs", "parameters", "parameter_bytes", "memory_bytes",
    "receive_bytes", "send_bytes", "message_bytes", "slot_bytes", "graph_bytes", "modules",
}  # fmt: skip


def test_every_documented_key_is_there() -> None:
    document = describe(toy_plan(), "toy.plan.json")
    assert set(document) >= KEYS
    assert document["plan"] == "toy.plan.json"
    assert document["cost_source"] == "roofline h200"
    assert document["devices"] == ["a", "a", "b", "b"]
    for rank, component in enumerate(document["components"]):
        assert set(component) >= COMPONENT_KEYS
        assert component["rank"] == rank
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_ranks_are_shown_with_their_branch_component_and_modules() -> None:
    components = describe(toy_plan(), None)["components"]
    assert [(c["branch"], c["component"], c["nodes"], c["pieces"]) for c in components] == [
        (0, 1, 3, 1), (0, 0, 3, 1), (1, 1, 3, 1), (1, 0, 3, 1),
    ]  # fmt: skip
    assert components[1]["modules"] == "conv_in .. mid"
    assert components[0]["modules"] == "up.0 .. relu.0"


def test_a_fold_is_shown_as_two_pieces() -> None:
    outer = describe(toy_plan(folded=True), None)["components"][0]
    assert outer["pieces"] == 2
    assert outer["modules"] == "conv_in .. down.0 + conv_out .. relu.0"


@pytest.mark.parametrize(("steps", "expected"), [(50, 400 / (5 * 4 + 45 * 2)), (5, 2.0), (3, 2.0)])
def test_a_trajectory_pays_for_its_warm_up(steps: int, expected: float) -> None:
    assert toy_plan().speedup(steps) == pytest.approx(expected)


def test_two_calls_per_step_and_exact_last_ones_are_counted() -> None:
    """Of 30 steps of Heun 59 calls, 4 + 2 of them exact; in async mode the last ones lag like all others."""
    plan = toy_plan().model_copy(update={"mode": "lookahead", "warmup": 4})
    figures = plan.predicted
    for mode, exact in (("lookahead", 6), ("async", 4)):
        total = exact * figures.exact_step_ms + (59 - exact) * figures.step_ms
        found = plan.model_copy(update={"mode": mode}).speedup(30, "HeunDiscreteScheduler")
        assert found == pytest.approx(59 * figures.sequential_ms / total)
    heun = describe(plan, None, SamplingSetup(30, "HeunDiscreteScheduler"))
    assert heun["speedup_trajectory"] == plan.speedup(30, "HeunDiscreteScheduler") < plan.speedup(59)
    assert heun["steps"] == 30


def test_the_speed_of_light_says_where_the_speedup_goes() -> None:
    plan = toy_plan()
    light = light_of(plan, ANY)
    assert (light.ideal, light.balanced, light.connected) == (4.0, 4.0, 4.0)
    assert light.remaining == plan.speedup(50) < 4.0
    busy = plan.model_copy(update={"periods": (2, 1), "period": 2})
    assert light_of(busy, ANY).balanced == 4.0  # the last component still computes in every step
