"""Multiply-accumulates of nodes are those that torch counts, and those that AsyncDiff publishes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from partitioner.costs.macs import macs_of
from partitioner.graph.export import fake_mode, trace
from partitioner.graph.ir import TracedGraph
from partitioner.graph.operator_classes import operator_class, operator_name
from tests.support.graphs import full_graph, small_graph
from tools.denoisers import DENOISERS


class Products(nn.Module):
    """One of every operator that multiplies matrices, with odd sizes, strides and groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(6, 4, 3, stride=2, groups=2)
        self.conv2d = nn.Conv2d(3, 6, (3, 5), padding=1, dilation=2)
        self.conv3d = nn.Conv3d(2, 4, (3, 1, 1), padding=(1, 0, 0))
        self.up1d = nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1)
        self.up2d = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2)
        self.linear = nn.Linear(7, 5)
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: torch.Tensor, image: torch.Tensor, video: torch.Tensor, rows: torch.Tensor) -> Any:
        line = self.up1d(self.conv1d(x))
        picture = self.up2d(self.conv2d(image))
        made = self.linear(rows)  # 2 x 4 x 5
        flat = torch.addmm(self.weight[0], made[0], self.weight) + made[1] @ self.weight
        batch = torch.baddbmm(made, made, torch.bmm(made.transpose(1, 2), made))
        outer = torch.einsum("bij,bkj->bik", made, batch) + torch.matmul(made, batch.transpose(1, 2))
        heads = batch.reshape(2, 4, 5, 1).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(heads, heads[:, :, :3], heads[:, :, :3])
        return line, picture, self.conv3d(video), flat, outer, mixed, torch.mm(self.weight, self.weight.T)


def products_graph() -> tuple[nn.Module, dict[str, Any], TracedGraph]:
    module = Products().eval()
    inputs = {
        "x": torch.randn(2, 6, 9),
        "image": torch.randn(2, 3, 12, 11),
        "video": torch.randn(1, 2, 4, 3, 3),
        "rows": torch.randn(2, 4, 7),
    }
    return module, inputs, trace(module, inputs, dict.fromkeys(inputs, "latent"))


def node_macs(graph: TracedGraph) -> dict[str, int]:
    return {node.name: macs_of(graph, node) for node in graph.nodes}


def counted_macs(module: nn.Module, inputs: dict[str, Any]) -> int:
    """What torch counts in a real run; attention as its two products, since the CPU's fused one is not counted."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(**inputs)
    return int(counter.get_total_flops()) // 2


def test_macs_equal_what_torch_counts_for_every_product() -> None:
    module, inputs, graph = products_graph()
    macs = node_macs(graph)
    assert sum(macs.values()) == counted_macs(module, inputs)
    counted = {operator_name(node.target) for node in graph.nodes if macs[node.name]}
    assert counted == {
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "linear", "addmm", "matmul", "bmm",
        "baddbmm", "einsum", "mm", "scaled_dot_product_attention",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15-like", "dit-like"])
def test_macs_equal_what_torch_counts_for_small_denoisers(name: str) -> None:
    with fake_mode():
        module, inputs, _ = DENOISERS[name]()
        expected = counted_macs(module, inputs)
    assert sum(node_macs(small_graph(name)).values()) == expected


# 50 calls with guidance, without the attention products: AsyncDiff (arXiv 2406.06911), Table 1, in 1e12.
ASYNCDIFF_TMACS = {"sd15": 34, "sd21": 76, "sdxl": 299}


@pytest.mark.slow
@pytest.mark.parametrize("name", ASYNCDIFF_TMACS)
def test_macs_agree_with_asyncdiff(name: str) -> None:
    graph = full_graph(name)
    macs = node_macs(graph)
    without_attention = sum(macs[node.name] for node in graph.nodes if operator_class(node.target) != "attention")
    assert 50 * without_attention / 1e12 == pytest.approx(ASYNCDIFF_TMACS[name], rel=0.01)
