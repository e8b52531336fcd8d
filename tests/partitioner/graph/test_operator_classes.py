"""Operator classes: which nodes move data, and what values stand for."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from partitioner.costs.measure import distinct_calls
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node
from partitioner.graph.operator_classes import is_free, moves_data, value_metas
from tests.support.graphs import small_graph


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
    from partitioner.graph.nodes import Input, Ref, Role, TensorMeta

    meta = TensorMeta(tuple(source.shape), tuple(source.stride()), "float32")
    out = torch.empty(shape)
    node = Node(
        name="out", key="/out", target=target, args=(Ref("x"), tuple(shape)), kwargs=(), module="",
        role=Role.LATENT, outputs=(TensorMeta(tuple(shape), tuple(out.stride()), "float32"),),
    )  # fmt: skip
    return TracedGraph("m", "M", (Input("x", meta, Role.LATENT),), (), (), (node,), (Ref("out"),))


def test_views_are_free_in_a_cuda_graph_and_not_in_eager_mode() -> None:
    graph = small_graph("dit-like")
    views = [n for n in graph.nodes if not moves_data(graph, n) and n.target != "operator.getitem"]
    assert views
    assert all(is_free(graph, node, "cuda_graph") and not is_free(graph, node, "eager") for node in views)
    assert all(is_free(graph, n, "eager") for n in graph.nodes if n.target == "operator.getitem")
    assert not {n.name for n in distinct_calls(graph, "cuda_graph").values()} & {n.name for n in views}


def test_values_of_all_kinds_have_metas() -> None:
    graph = small_graph("dit-like")
    for node in graph.nodes:
        assert value_metas(graph, node.name) == node.outputs
        assert all(value_metas(graph, name) for name in node.reads)
