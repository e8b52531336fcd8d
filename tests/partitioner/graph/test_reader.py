"""ExportReader: roles, stripped operators, stable keys, groups, and graphs that compute what the module does."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from partitioner.errors import TraceError
from partitioner.graph.arguments import flatten_arguments
from partitioner.graph.export import fake_mode, trace
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node, Role
from partitioner.graph.operators import bind, resolve
from partitioner.graph.reader import ExportReader, _target_name
from tests.support.toy_denoiser import ROLES, Denoiser, by_target, inputs, traced


def test_roles_follow_what_a_value_depends_on() -> None:
    graph = traced()
    linears = {node.module: node.role for node in by_target(graph, "aten.linear.default")}
    assert linears == {
        "blocks.0.time": Role.TIMESTEP, "blocks.0.context": Role.PROMPT,
        "blocks.1.time": Role.TIMESTEP, "blocks.1.context": Role.PROMPT,
    }  # fmt: skip
    assert {node.role for node in by_target(graph, "aten.conv2d.default")} == {Role.LATENT}
    assert by_target(graph, "aten.arange.default")[0].role is Role.CONSTANT
    for node in graph.nodes:
        if node.role is not Role.LATENT:
            assert not any(
                graph.node_by_name[name].role > node.role for name in node.reads if name in graph.node_by_name
            )
    assert graph.latent_nodes == tuple(node for node in graph.nodes if node.role is Role.LATENT)


def test_what_computes_nothing_is_stripped() -> None:
    graph = traced(scale=1.0)
    targets = {node.target for node in graph.nodes}
    assert not targets & {"aten.dropout.default", "aten._assert_tensor_metadata.default", "aten.detach.default"}
    assert "aten.conv2d.default" in targets  # not decomposed
    assert "aten.group_norm.default" in targets
    # x * 1.0 is x, so the last block's sum is the result; x * 0.5 is not
    assert graph.node_by_name[graph.result_values[0]].target == "aten.add.Tensor"
    assert traced(scale=0.5).node_by_name[traced(scale=0.5).result_values[0]].target == "aten.mul.Tensor"


def test_parameters_are_those_that_are_read() -> None:
    paths = [parameter.path for parameter in traced().parameters]
    assert "blocks.1.conv.weight" in paths
    assert not any(path.startswith("unused") for path in paths)
    assert len(paths) == len(set(paths))


def test_keys_are_unique_and_stay_when_the_size_changes() -> None:
    small, large = traced(), trace(Denoiser().eval(), inputs(rows=3, side=16), ROLES)
    assert len({node.key for node in small.nodes}) == len(small.nodes)
    assert [node.key for node in small.nodes] == [node.key for node in large.nodes]
    assert small.fingerprint != large.fingerprint
    assert by_target(small, "aten.conv2d.default")[1].key == "blocks.1.conv/conv2d.0"


def run(graph: TracedGraph, module: nn.Module, arguments: Mapping[str, Any]) -> list[Any]:
    """Execute a graph node by node, as it says."""
    cpu = torch.device("cpu")
    state = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    values: dict[str, Any] = flatten_arguments(arguments).tensors
    values.update((parameter.name, state[parameter.path]) for parameter in graph.parameters)
    with torch.no_grad():
        for node in graph.nodes:
            operator, keywords = resolve(node.target), {key: bind(item, values, cpu) for key, item in node.kwargs}
            values[node.name] = operator(*(bind(item, values, cpu) for item in node.args), **keywords)
    return [bind(item, values, cpu) for item in graph.results]


class CopyThenWrite(nn.Module):
    """x * 1.0 is a copy, which may not be replaced by x when it is written to."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        wave = torch.sin(x)
        copy = wave * 1.0
        copy.add_(t)
        return copy + wave


class WriteAfterCopy(nn.Module):
    """The same where the source is written to."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        wave = torch.sin(x)
        copy = wave / 1
        wave.mul_(t)
        return copy + wave


class WriteToView(nn.Module):
    """Views, in-place writes through them, lists of tensors, and a dict of results with a None in it."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> dict[str, Any]:
        out = torch.zeros_like(x)
        out[:, 0] = x[:, 1] * 2
        first, second = x.chunk(2, dim=1)
        joined = torch.cat([first, second], dim=1)
        joined[:, :1].mul_(t)
        return {"sum": out + joined, "nothing": None, "parts": [first, second]}


class WriteThroughCast(nn.Module):
    """Casts and reshapes that change nothing hand on the tensor itself, also when it is then written to."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        wave = torch.cos(x.to(x.dtype).contiguous())
        flat = nn.functional.dropout(wave.float().view(-1), 0.5, self.training)
        flat += t
        return torch.relu_(wave)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) * t


@pytest.mark.parametrize("module", [CopyThenWrite, WriteAfterCopy, WriteToView, WriteThroughCast, Tied])
def test_a_graph_computes_what_the_module_does(module: type[nn.Module]) -> None:
    torch.manual_seed(0)
    denoiser = module().eval()
    arguments = {"x": torch.randn(4, 4), "t": torch.tensor(2.5)}
    with torch.no_grad():
        expected = tree_leaves(denoiser(**{name: value.clone() for name, value in arguments.items()}))
    graph = trace(denoiser, arguments, ROLES)
    found = run(graph, denoiser, arguments)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None and theirs is None) or torch.equal(mine, theirs)


def test_the_larger_denoiser_computes_what_the_module_does() -> None:
    denoiser = Denoiser().eval()
    arguments = {"x": torch.randn(2, 4, 8, 8), "t": torch.tensor(3.0), "context": torch.randn(2, 5, 6)}
    expected = denoiser(**arguments, return_dict=False)[0]
    graph = traced(denoiser)
    assert torch.equal(run(graph, denoiser, arguments)[0], expected)


class NumbersInForward(nn.Module):
    """As FreeU's filter: a number is written into a mask."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(4, 4)
        mask[1:3] = 0.25
        return x * t * mask * torch.tensor(3.0)


@pytest.mark.parametrize("where", [contextlib.nullcontext, fake_mode])
def test_a_number_that_a_forward_makes_a_tensor_of_is_made_by_a_node(where: Any) -> None:
    module = NumbersInForward().eval()
    with where():
        graph = trace(module, {"x": torch.zeros(4, 4), "t": torch.tensor(1.0)}, ROLES)
    assert [node.args[1] for node in by_target(graph, "aten.full.default")] == [0.25, 3.0]
    arguments = {"x": torch.randn(4, 4), "t": torch.tensor(2.0)}
    assert torch.equal(run(graph, module, arguments)[0], module(**arguments))


def test_nodes_that_share_written_storage_are_one_group_with_one_role() -> None:
    graph = trace(WriteToView().eval(), {"x": torch.zeros(4, 4), "t": torch.tensor(1.0)}, ROLES)
    groups: dict[int, list[Node]] = {}
    for node in graph.nodes:
        groups.setdefault(node.group, []).append(node)
    written = [[node.target for node in nodes] for number, nodes in groups.items() if number >= 0]
    assert sorted(written) == [
        ["aten.cat.default", "aten.slice.Tensor", "aten.mul_.Tensor"],
        ["aten.zeros_like.default", "aten.select.int", "aten.copy_.default"],
    ]
    for number, nodes in groups.items():
        assert number < 0 or len({node.role for node in nodes}) == 1
    assert not any(node.group >= 0 for node in traced().nodes)


def test_a_size_that_depends_on_values_is_refused_in_a_sentence() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor, drop: torch.Tensor) -> torch.Tensor:
            return x + x[drop].sum()

    arguments = {"x": torch.zeros(2, 4), "drop": torch.zeros(2, dtype=torch.bool)}
    program = torch.export.export(Masked().eval(), (), arguments)
    roles = {"x": Role.LATENT, "drop": Role.PROMPT}
    with pytest.raises(TraceError, match=r"module <root> \(.*x\[drop\].*\) calls aten\.index\.Tensor, whose result"):
        ExportReader(program, flatten_arguments(arguments), roles, "mine", "Masked").read()
    with pytest.raises(TraceError, match="a size or a branch depends on the values of a tensor"):
        trace(Masked().eval(), arguments, roles)
    with pytest.raises(TraceError, match=r"module experts computes with a size \(ge\) that depends on the values"):
        _target_name(operator.ge, "mine", "module experts")
