"""A plan of a toy denoiser with round figures, made without torch."""

from __future__ import annotations

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Input, Node, Ref, Role, TensorMeta
from partitioner.plan.plan import Plan
from partitioner.plan.records import CostSource, Predicted, PredictedComponent


def toy_plan(kind: str = "roofline", folded: bool = False) -> Plan:
    """Two branches of two components, each a run of modules; folded: component 1 has the first and the last ones."""
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
