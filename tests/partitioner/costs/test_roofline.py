"""Costs from shapes alone: MACs as torch counts them, copies as torch makes them, rooflines as a hand computes them."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from partitioner.costs.lookup import apply_profile, load_profile
from partitioner.costs.macs import node_macs
from partitioner.costs.measure import distinct_calls
from partitioner.costs.roofline import estimate
from partitioner.costs.signature import signature
from partitioner.errors import UsageError
from partitioner.graph.export import fake_mode, trace
from partitioner.graph.ir import Node, TracedGraph
from partitioner.graph.operator_classes import is_free, moves_data, operator_class, operator_name, value_metas
from partitioner.models.spec import model_spec, trace_model
from profiles.cost_profile import CostProfile, SignatureCost
from profiles.device_sheets import device_spec, device_specs
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


@functools.cache
def small_graph(name: str) -> TracedGraph:
    with fake_mode():
        module, inputs, roles = DENOISERS[name]()
        return trace(module, inputs, roles, model=name)


@pytest.mark.parametrize("name", ["sd15-like", "dit-like"])
def test_macs_equal_what_torch_counts_for_small_denoisers(name: str) -> None:
    with fake_mode():
        module, inputs, _ = DENOISERS[name]()
        expected = counted_macs(module, inputs)
    assert sum(node_macs(small_graph(name)).values()) == expected


# 50 calls with guidance, without the attention products: AsyncDiff (arXiv 2406.06911), Table 1, in 1e12.
ASYNCDIFF_TMACS = {"sd15": 34, "sd21": 76, "sdxl": 299}


@functools.cache
def full_graph(name: str) -> TracedGraph:
    return trace_model(model_spec(name))


@pytest.mark.parametrize("name", ASYNCDIFF_TMACS)
def test_macs_agree_with_asyncdiff(name: str) -> None:
    graph = full_graph(name)
    macs = node_macs(graph)
    without_attention = sum(macs[node.name] for node in graph.nodes if operator_class(node.target) != "attention")
    assert 50 * without_attention / 1e12 == pytest.approx(ASYNCDIFF_TMACS[name], rel=0.01)


@pytest.mark.parametrize("device", device_specs())
def test_every_node_of_a_large_model_has_a_sane_cost(device: str) -> None:
    graph = full_graph("sdxl")
    costs = estimate(graph, device)
    assert costs.source == "roofline"
    assert costs.device == device
    assert costs.covered == 0
    assert list(costs.nodes) == [node.name for node in graph.nodes]
    assert costs == estimate(graph, device)
    for node in graph.nodes:
        cost = costs.nodes[node.name]
        if moves_data(graph, node):
            assert 0 < cost.ms < 0.1 * sum(c.ms for c in costs.nodes.values())
            assert cost.write_bytes == sum(meta.size_bytes for meta in node.outputs) > 0
        else:
            assert (cost.ms, cost.macs, cost.read_bytes, cost.write_bytes) == (0, 0, 0, 0)


def test_roofline_is_the_longer_of_compute_and_memory() -> None:
    """On an A5000: a large product by its peak, a thin one and an addition by memory."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large = nn.Linear(4096, 4096, bias=False, dtype=torch.float16)
            self.thin = nn.Linear(4096, 1, bias=False, dtype=torch.float16)

        def forward(self, x: torch.Tensor) -> Any:
            return self.large(x), self.thin(x), x + 1

    with fake_mode():
        graph = trace(Three().eval(), {"x": torch.zeros(4096, 4096, dtype=torch.float16)}, {"x": "latent"})
    large, thin, add = (estimate(graph, "a5000").nodes[node.name] for node in graph.nodes)
    spec = device_spec("a5000")
    memory = 768e6 * spec.efficiency.memory  # bytes per ms
    assert large.macs == 4096**3
    assert large.ms == pytest.approx(2 * 4096**3 / (111.1e9 * spec.efficiency.matmul))
    assert (thin.read_bytes, thin.write_bytes) == (2 * (4096**2 + 4096), 2 * 4096)
    assert thin.ms == pytest.approx((thin.read_bytes + thin.write_bytes) / memory)
    assert add.ms == pytest.approx(4 * 4096**2 / memory)


def test_float32_convolutions_use_tensor_cores_and_products_do_not() -> None:
    with fake_mode():
        module = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Linear(510, 510, bias=False)).eval()
        graph = trace(module, {"input": torch.zeros(1, 64, 512, 512)}, {"input": "latent"})
    conv, linear = (estimate(graph, "a5000").nodes[node.name] for node in graph.nodes)
    efficiency = device_spec("a5000").efficiency
    assert conv.ms == pytest.approx(2 * conv.macs / (55.6e9 * efficiency.conv))
    assert linear.ms == pytest.approx(2 * linear.macs / (27.8e9 * efficiency.matmul))


def test_expanded_operands_are_read_once() -> None:
    class Broadcast(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.expand(100, 50) * 2

    graph = trace(Broadcast().eval(), {"x": torch.zeros(50)}, {"x": "latent"})
    expand, mul = (estimate(graph, "cpu").nodes[node.name] for node in graph.nodes)
    assert (expand.read_bytes, expand.write_bytes) == (0, 0)
    assert (mul.read_bytes, mul.write_bytes) == (4 * 50, 4 * 5000)


@given(st.data())
def test_reshape_copies_exactly_where_torch_copies(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4))
    order = data.draw(st.permutations(range(len(sizes))))
    source = torch.zeros([sizes[i] for i in order]).permute([order.index(i) for i in range(len(sizes))])
    if data.draw(st.booleans()) and source.shape[0] > 1:
        source = source[1:]
    if data.draw(st.booleans()):
        source = source[..., :1].expand(*source.shape[:-1], 2)
    factors = [f for size in source.shape for f in ((2, 2) if size == 4 else (size,))]
    shape = [1]
    for factor in data.draw(st.permutations(factors)):
        if data.draw(st.booleans()):
            shape.append(factor)
        else:
            shape[-1] *= factor
    copied = source.reshape(shape).untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
    graph = one_node_graph("aten.reshape.default", source, shape)
    assert moves_data(graph, graph.nodes[0]) == copied


def one_node_graph(target: str, source: torch.Tensor, shape: list[int]) -> TracedGraph:
    from partitioner.graph.ir import Input, Ref, Role, TensorMeta

    meta = TensorMeta(tuple(source.shape), tuple(source.stride()), "float32")
    out = torch.empty(shape)
    node = Node(
        name="out", key="/out", target=target, args=(Ref("x"), tuple(shape)), kwargs=(), module="",
        role=Role.LATENT, outputs=(TensorMeta(tuple(shape), tuple(out.stride()), "float32"),),
    )  # fmt: skip
    return TracedGraph("m", "M", (Input("x", meta, Role.LATENT),), (), (), (node,), (Ref("out"),))


def test_unknown_device_is_answered_with_the_choices() -> None:
    with pytest.raises(UsageError, match=r"'tpu'.*h200, h100"):
        estimate(small_graph("dit-like"), "tpu")


def test_signature_is_stable_text() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> Any:
            made = self.conv(x)
            zeros = torch.zeros(2, dtype=torch.float64)
            return made.permute(0, 2, 3, 1).reshape(64, 8), torch.add(made, made, alpha=2), zeros

    graph = trace(Module().eval(), {"x": torch.zeros(1, 4, 8, 8)}, {"x": "latent"})
    found = [signature(graph, node) for node in graph.nodes]
    assert found == [
        "aten.conv2d.default(float32[1,4,8,8], float32[8,4,3,3], float32[8], [1, 1], [1, 1])",
        "aten.zeros.default([2], device=device, dtype=dtype:float64, pin_memory=False)",
        "aten.permute.default(float32[1,8,8,8], [0, 2, 3, 1])",
        "aten.reshape.default(float32[1,8,8,8]@512,8,1,64, [64, 8])",
        "aten.add.Tensor(float32[1,8,8,8], float32[1,8,8,8], alpha=2)",
    ]


def test_nodes_of_one_signature_do_the_same_work() -> None:
    graph = full_graph("sd15")
    costs = estimate(graph)
    by_signature: dict[str, set[Any]] = {}
    for node in graph.nodes:
        by_signature.setdefault(signature(graph, node), set()).add(costs.nodes[node.name])
    assert all(len(found) == 1 for found in by_signature.values())
    assert len(by_signature) < 300 < len(graph.nodes)


def made_profile(graph: TracedGraph, scale: float, kinds: set[str]) -> CostProfile:
    """A profile that covers operator classes ``kinds``, each taking ``scale`` times its roofline on a CPU."""
    roofline = estimate(graph, "cpu").nodes
    return CostProfile(
        schema_version=1,
        device="cpu",
        device_name="made up",
        clock_mhz=None,
        versions={},
        dtype="float32",
        mode="eager",
        date="",
        command="",
        signatures={
            text: SignatureCost(median_ms=scale * roofline[node.name].ms, iqr_ms=0, launch_ms=0)
            for text, node in distinct_calls(graph, "eager").items()
            if operator_class(node.target) in kinds
        },
    )


EVERYTHING = {"conv", "matmul", "attention", "memory"}


def test_full_profile_is_looked_up() -> None:
    graph = small_graph("dit-like")
    roofline = estimate(graph, "cpu")
    costs = apply_profile(made_profile(graph, 3.0, EVERYTHING), graph)
    assert (costs.source, costs.device) == ("measured", "made up")
    assert costs.covered == pytest.approx(1.0)
    for name, cost in costs.nodes.items():
        assert cost.ms == pytest.approx(3 * roofline.nodes[name].ms)
        assert dataclasses.replace(cost, ms=0) == dataclasses.replace(roofline.nodes[name], ms=0)


def test_profile_of_one_model_serves_another() -> None:
    profile = made_profile(full_graph("sd21"), 1.0, EVERYTHING)
    costs = apply_profile(profile, full_graph("sd15"))
    assert 0 < costs.covered < 1


def test_uncovered_signatures_are_scaled_by_their_class() -> None:
    """Half of the matmuls are covered and take 4 times their roofline: so do the others; other classes take 4 times."""
    graph = small_graph("dit-like")
    full = made_profile(graph, 4.0, {"matmul"})
    texts = sorted(full.signatures)
    half = full.model_copy(update={"signatures": {text: full.signatures[text] for text in texts[::2]}})
    costs = apply_profile(half, graph)
    roofline = estimate(graph, "cpu")
    for name, cost in costs.nodes.items():
        assert cost.ms == pytest.approx(4 * roofline.nodes[name].ms)
    looked_up = sum(costs.nodes[n.name].ms for n in graph.nodes if signature(graph, n) in half.signatures)
    assert costs.covered == pytest.approx(looked_up / sum(cost.ms for cost in costs.nodes.values()))


def test_classes_are_scaled_apart() -> None:
    graph = small_graph("dit-like")
    two = made_profile(graph, 4.0, {"matmul"})
    memory = made_profile(graph, 0.5, {"memory"}).signatures
    some = dict(sorted(memory.items())[::2])
    costs = apply_profile(two.model_copy(update={"signatures": two.signatures | some}), graph)
    roofline = estimate(graph, "cpu")
    ratio = Counter(
        round(costs.nodes[n.name].ms / roofline.nodes[n.name].ms, 6)
        for n in graph.nodes
        if operator_class(n.target) == "memory" and roofline.nodes[n.name].ms
    )
    assert set(ratio) == {0.5}


def test_profile_that_covers_nothing_is_a_roofline() -> None:
    graph = small_graph("dit-like")
    costs = apply_profile(made_profile(graph, 1.0, set()), graph, "a5000")
    assert (costs.source, costs.covered) == ("roofline", 0.0)
    assert costs.nodes == estimate(graph, "a5000").nodes


def test_views_are_free_in_a_cuda_graph_and_not_in_eager_mode() -> None:
    graph = small_graph("dit-like")
    views = [n for n in graph.nodes if not moves_data(graph, n) and n.target != "operator.getitem"]
    assert views
    assert all(is_free(graph, node, "cuda_graph") and not is_free(graph, node, "eager") for node in views)
    assert all(is_free(graph, n, "eager") for n in graph.nodes if n.target == "operator.getitem")
    assert not {n.name for n in distinct_calls(graph, "cuda_graph").values()} & {n.name for n in views}


def test_unreadable_profile_is_a_usage_error(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match=r"missing\.json cannot be read"):
        load_profile(tmp_path / "missing.json")


def test_values_of_all_kinds_have_metas() -> None:
    graph = small_graph("dit-like")
    for node in graph.nodes:
        assert value_metas(graph, node.name) == node.outputs
        assert all(value_metas(graph, name) for name in node.reads)
