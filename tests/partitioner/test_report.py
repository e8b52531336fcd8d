"""The report: the documented keys with their meaning, and a table whose estimates are called so."""

from __future__ import annotations

import json

import pytest

from partitioner.graph.ir import Input, Node, Ref, Role, TensorMeta, TracedGraph
from partitioner.plan.plan import Plan
from partitioner.plan.records import CostSource, Predicted, PredictedComponent
from partitioner.planning.expected_quality import ANY, SamplingSetup
from partitioner.report import describe, light_of, table

# What docs and scripts rely on: `partition-model --json`.
KEYS = {
    "plan", "model", "fingerprint", "devices", "branches", "period", "warmup", "predictor", "cost_source",
    "sequential_ms", "step_ms", "lower_bound_ms", "gap", "speedup_step", "speedup_trajectory", "steps",
    "bytes_per_step", "staleness", "macs", "components", "speed_of_light",
}  # fmt: skip
COMPONENT_KEYS = {
    "rank", "branch", "nodes", "pieces", "compute_ms", "macs", "parameters", "parameter_bytes", "memory_bytes",
    "receive_bytes", "send_bytes", "modules",
}  # fmt: skip


def make_plan(kind: str = "roofline", folded: bool = False) -> Plan:
    meta = TensorMeta((2, 4), (4, 1), "float16")
    modules = ("conv_in", "down.0", "mid", "up.0", "conv_out", "")
    nodes = []
    value = "x"
    for position, module in enumerate(modules):
        name = f"n{position}"
        nodes.append(
            Node(name, f"{module}/relu.0", "aten.relu.default", (Ref(value),), (), module, Role.LATENT, (meta,))
        )
        value = name
    graph = TracedGraph("toy", "Toy", (Input("x", meta, Role.LATENT),), (), (), tuple(nodes), (Ref(value),))
    placed = (1, 1, 0, 0, 1, 1) if folded else (0, 0, 0, 1, 1, 1)
    figures = PredictedComponent(
        compute_ms=2.0, macs=6, parameters=3_000_000, parameter_bytes=6_000_000, memory_bytes=9_000_000,
        receive_bytes=16, send_bytes=16,
    )  # fmt: skip
    return Plan.from_split(
        graph,
        {node.name: k for node, k in zip(nodes, placed, strict=True)},
        components=2,
        branches=2,
        mode="async" if folded else "lookahead",
        warmup=5,
        devices=("a", "a", "b", "b"),
        predicted=Predicted(
            sequential_ms=8.0, step_ms=2.0, exact_step_ms=4.0, lower_bound_ms=1.6, gap=0.25, speedup_step=4.0,
            bytes_per_step=32, staleness=0.0, macs=24, components=(figures,) * 4,
        ),
        cost_source=CostSource(kind=kind, device="h200", covered=0.0 if kind == "roofline" else 0.97),
        versions={"torch": "2.13.0"},
    )  # fmt: skip


def test_every_documented_key_is_there() -> None:
    document = describe(make_plan(), "toy.plan.json")
    assert set(document) >= KEYS
    assert document["plan"] == "toy.plan.json"
    assert document["cost_source"] == "roofline h200"
    assert document["devices"] == ["a", "a", "b", "b"]
    for rank, component in enumerate(document["components"]):
        assert set(component) >= COMPONENT_KEYS
        assert component["rank"] == rank
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_ranks_are_shown_with_their_branch_component_and_modules() -> None:
    components = describe(make_plan(), None)["components"]
    assert [(c["branch"], c["component"], c["nodes"], c["pieces"]) for c in components] == [
        (0, 1, 3, 1), (0, 0, 3, 1), (1, 1, 3, 1), (1, 0, 3, 1),
    ]  # fmt: skip
    assert components[1]["modules"] == "conv_in .. mid"
    assert components[0]["modules"] == "up.0 .. relu.0"


def test_a_fold_is_shown_as_two_pieces() -> None:
    outer = describe(make_plan(folded=True), None)["components"][0]
    assert outer["pieces"] == 2
    assert outer["modules"] == "conv_in .. down.0 + conv_out .. relu.0"


@pytest.mark.parametrize(("steps", "expected"), [(50, 400 / (5 * 4 + 45 * 2)), (5, 2.0), (3, 2.0)])
def test_a_trajectory_pays_for_its_warm_up(steps: int, expected: float) -> None:
    assert make_plan().speedup(steps) == pytest.approx(expected)


def test_two_calls_per_step_and_exact_last_ones_are_counted() -> None:
    """Of 30 steps of Heun 59 calls, 4 + 2 of them exact; in async mode the last ones lag like all others."""
    plan = make_plan().model_copy(update={"mode": "lookahead", "warmup": 4})
    figures = plan.predicted
    for mode, exact in (("lookahead", 6), ("async", 4)):
        total = exact * figures.exact_step_ms + (59 - exact) * figures.step_ms
        found = plan.model_copy(update={"mode": mode}).speedup(30, "HeunDiscreteScheduler")
        assert found == pytest.approx(59 * figures.sequential_ms / total)
    heun = describe(plan, None, SamplingSetup(30, "HeunDiscreteScheduler"))
    assert heun["speedup_trajectory"] == plan.speedup(30, "HeunDiscreteScheduler") < plan.speedup(59)
    assert heun["steps"] == 30


def test_the_table_calls_estimates_estimates() -> None:
    text = table(describe(make_plan(), "toy.plan.json"))
    assert "roofline estimate for h200; nothing was measured" in text
    for line in text.splitlines():
        if " ms" in line or "speed-up" in line:
            assert "estimate" in line, line
    measured = table(describe(make_plan("measured"), None))
    assert "measured on h200 (97.0% of the time; the rest by a roofline calibrated on that)" in measured
    assert "estimate" not in measured


def test_the_table_literally() -> None:
    assert table(describe(make_plan("measured"), "toy.plan.json")) == EXPECTED


EXPECTED = """\
toy (Toy) on 2 x a, 2 x b: 2 branches x 2 components, look-ahead, warm-up 5, predictor hold
costs: measured on h200 (97.0% of the time; the rest by a roofline calibrated on that)

rank  branch  component  device  modules         ms  share  parameters  memory    in   out
   0       0          1  a       up.0 .. relu.0   2  25.0%       3.0 M  9.0 MB  16 B  16 B
   1       0          0  a       conv_in .. mid   2  25.0%       3.0 M  9.0 MB  16 B  16 B
   2       1          1  b       up.0 .. relu.0   2  25.0%       3.0 M  9.0 MB  16 B  16 B
   3       1          0  b       conv_in .. mid   2  25.0%       3.0 M  9.0 MB  16 B  16 B

predicted step   2 ms, sequential 8 ms: speed-up 4.00 x
trajectory       speed-up 3.64 x over 50 steps with warm-up
speed of light   ideal 4.00 x, balance leaves 4.00 x, communication 4.00 x, warm-up 3.64 x over 50 steps
lower bound      1.6 ms; slowest component 25.00% above it
sent             32 B per step; staleness 0
denoiser         2.4e-11 T multiply-accumulates per call

plan             toy.plan.json"""


def test_the_speed_of_light_line_says_where_the_speedup_goes() -> None:
    plan = make_plan()
    light = light_of(plan, ANY)
    assert (light.ideal, light.balanced, light.connected) == (4.0, 4.0, 4.0)
    assert light.remaining == plan.speedup(50) < 4.0
    line = next(line for line in table(describe(plan, None)).splitlines() if line.startswith("speed of light"))
    assert line == f"speed of light   {light}, an estimate"
    busy = plan.model_copy(update={"periods": (2, 1), "period": 2})
    assert light_of(busy, ANY).balanced == 4.0  # the last component still computes in every step
