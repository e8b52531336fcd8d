"""A real UNet's placement carried over to other resolutions, batches and dtypes, and to one with a LoRA."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from partitioner.errors import PlanError
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.plan.build_programs import build_programs
from partitioner.plan.plan import Plan
from tests.support.plans import plan_simply

ROLES = {"sample": "latent", "timestep": "timestep", "encoder_hidden_states": "prompt"}


class Lora(nn.Module):
    """A linear layer as peft wraps it: the layer itself, and a low-rank path beside it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, base_layer.out_features, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base_layer(x)
        return result + self.lora_B["default"](self.lora_A["default"](x)) * 0.5


@cache
def graph_of(
    size: int = 16, rows: int = 2, dtype: torch.dtype = torch.float16, lora: bool = False, blocks: int = 2
) -> TracedGraph:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32,) * (blocks - 1) + (64,), layers_per_block=1, cross_attention_dim=32,
        attention_head_dim=8, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * (blocks - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (blocks - 1),
    ).to(dtype).eval()  # fmt: skip
    if lora:
        for name, module in list(unet.named_modules()):
            if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
                owner, _, attribute = name.rpartition(".")
                setattr(unet.get_submodule(owner), attribute, Lora(module).to(dtype))
    inputs = {
        "sample": torch.zeros(rows, 4, size, size, dtype=dtype),
        "timestep": torch.zeros((), dtype=torch.float32),
        "encoder_hidden_states": torch.zeros(rows, 7, 32, dtype=dtype),
        "return_dict": False,
    }
    return trace(unet, inputs, ROLES, model="small")


@pytest.fixture(scope="module")
def graph() -> TracedGraph:
    return graph_of()


@pytest.fixture(scope="module")
def plan(graph: TracedGraph) -> Plan:
    return plan_simply(graph, 3, "h200").plan


@pytest.mark.parametrize(
    ("size", "rows", "dtype"), [(24, 2, torch.float16), (16, 1, torch.float16), (32, 6, torch.float32)]
)
def test_the_same_nodes_stay_where_they_are(plan: Plan, size: int, rows: int, dtype: torch.dtype) -> None:
    other = graph_of(size, rows, dtype)
    plan.check(other)
    placed = plan.place(other)
    for node in other.latent_nodes:
        if node.key in plan.placement:
            assert placed[node.name] == plan.placement[node.key]
    assert len(build_programs(other, placed, 3)) == 3


def test_a_lora_follows_the_layers_that_it_wraps(plan: Plan, graph: TracedGraph) -> None:
    with_lora = graph_of(lora=True)
    assert len(with_lora.latent_nodes) > 1.1 * len(graph.latent_nodes)
    placed = plan.place(with_lora)
    build_programs(with_lora, placed, 3)
    for node in with_lora.latent_nodes:
        wrapped = node.module.split(".base_layer")[0].split(".lora_")[0]
        key = f"{wrapped}/linear.0"
        if wrapped != node.module and key in plan.placement:
            assert placed[node.name] == plan.placement[key]


def test_a_lora_is_another_model_to_check(plan: Plan) -> None:
    with pytest.raises(PlanError, match="base_layer"):
        plan.check(graph_of(lora=True))


@pytest.mark.slow
def test_a_deeper_model_is_refused(plan: Plan) -> None:
    with pytest.raises(PlanError, match="make a plan for it"):
        plan.place(graph_of(blocks=4))
