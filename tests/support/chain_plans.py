"""Plans of a chain of layers, and the chain as a graph; no torch needed."""

from __future__ import annotations

import json
from typing import Any

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Input, Node, Parameter, Ref, Role, TensorMeta
from partitioner.plan.plan import Plan
from partitioner.plan.records import CostSource, Predicted, PredictedComponent

COMPONENT = PredictedComponent(
    compute_ms=1.5, macs=10, parameters=16, parameter_bytes=32, memory_bytes=64, receive_bytes=128, send_bytes=128
)


def chain(layers: int = 6, rows: int = 2, extra: int = 0, model: str = "toy", width: int = 4) -> TracedGraph:
    """sample -> linear, gelu -> linear, gelu ...; extra: how many layers have two more nodes below (as a LoRA adds)."""

    def meta(*shape: int) -> TensorMeta:
        return TensorMeta(shape, (*(width for _ in shape[1:]), 1), "float16")

    nodes: list[Node] = []
    parameters = []

    def add(name: str, module: str, target: str, *args: str) -> str:
        key = f"{module}/{target.split('.')[1]}.0"
        refs = tuple(map(Ref, args))
        nodes.append(Node(name, key, target, refs, (), module, Role.LATENT, (meta(rows, width),)))
        return name

    value = "sample"
    for layer in range(layers):
        weight = f"w{layer}"
        parameters.append(Parameter(weight, f"blocks.{layer}.proj.weight", meta(width, width)))
        wrapped = layer < extra
        linear_module = f"blocks.{layer}.proj" + (".base_layer" if wrapped else "")
        out = add(f"linear{layer}", linear_module, "aten.linear.default", value, weight)
        if wrapped:
            parameters.append(Parameter(f"a{layer}", f"blocks.{layer}.proj.lora_A.weight", meta(width, width)))
            low = add(f"lora{layer}", f"blocks.{layer}.proj.lora_A", "aten.linear.default", value, f"a{layer}")
            out = add(f"sum{layer}", f"blocks.{layer}.proj", "aten.add.Tensor", out, low)
        value = add(f"gelu{layer}", f"blocks.{layer}", "aten.gelu.default", out)
    return TracedGraph(
        model=model,
        class_name="Chain",
        inputs=(Input("sample", meta(rows, width), Role.LATENT),),
        literals=(("return_dict", False),),
        parameters=tuple(parameters),
        nodes=tuple(nodes),
        results=(Ref(value),),
    )


def make_plan(
    graph: TracedGraph, components: int = 3, branches: int = 1, mode: str = "lookahead", **changes: Any
) -> Plan:
    latent = graph.latent_nodes
    placed = {node.name: position * components // len(latent) for position, node in enumerate(latent)}
    ranks = components * branches
    predicted = Predicted(
        sequential_ms=4.5, step_ms=1.5, exact_step_ms=4.5, lower_bound_ms=1.5, gap=0.0, speedup_step=3.0,
        bytes_per_step=256,
        staleness=0.0, macs=30, components=(COMPONENT,) * ranks,
    )  # fmt: skip
    arguments: dict[str, Any] = {
        "components": components,
        "branches": branches,
        "mode": mode,
        "devices": ("cpu",) * ranks,
        "predicted": predicted,
        "cost_source": CostSource(kind="roofline", device="cpu", covered=0.0),
        "versions": {"torch": "2.13.0+cpu", "diffusers": "0.42.0", "diffusion_partitioner": "0.1.0"},
        "warmup": 2,
    }
    return Plan.from_split(graph, placed, **{**arguments, **changes})


def document(plan: Plan | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((plan or make_plan(chain())).canonical)
    return found
