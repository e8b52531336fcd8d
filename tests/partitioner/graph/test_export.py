"""trace and TracedGraph: roles, what is stripped, stable keys, the fingerprint, groups, and what is refused."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from partitioner.errors import TraceError
from partitioner.graph.arguments import bind_arguments, flatten_arguments, role_of
from partitioner.graph.export import fake_mode, trace
from partitioner.graph.ir import Node, Ref, Role, TracedGraph
from partitioner.graph.operators import bind, resolve

ROLES = {"x": "latent", "t": "timestep", "context": "prompt"}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.time = nn.Linear(4, width)
        self.context = nn.Linear(6, width)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        shift = self.time(t)[:, :, None, None] + self.context(context).mean(1)[:, :, None, None]
        return x + self.dropout(self.conv(torch.nn.functional.silu(self.norm(x)))) * shift


class Denoiser(nn.Module):
    """Two blocks; a sinusoidal timestep embedding; a position table made in forward; one unused parameter."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.unused = nn.Linear(3, 3)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, scale: float = 1.0, return_dict: bool = True
    ) -> Any:
        angles = t.reshape(1, 1) * torch.arange(4, dtype=torch.float32)
        embedded = torch.sin(angles).expand(x.shape[0], -1)
        for block in self.blocks:
            x = block(x, embedded, context)
        x = x * scale
        return {"sample": x} if return_dict else (x,)


def inputs(rows: int = 2, side: int = 8) -> dict[str, Any]:
    return {
        "x": torch.zeros(rows, 4, side, side),
        "t": torch.tensor(3.0),
        "context": torch.zeros(rows, 5, 6),
        "return_dict": False,
    }


def traced(module: nn.Module | None = None, **changes: Any) -> TracedGraph:
    return trace((module or Denoiser()).eval(), {**inputs(), **changes}, ROLES)


def by_target(graph: TracedGraph, target: str) -> list[Node]:
    return [node for node in graph.nodes if node.target == target]


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


def test_nodes_stand_in_topological_order_and_read_known_values() -> None:
    graph = traced()
    known = {item.name for item in graph.inputs} | {item.name for item in graph.parameters}
    for node in graph.nodes:
        assert set(node.reads) <= known
        known.add(node.name)
    assert set(graph.result_values) <= known
    assert graph.readers[graph.inputs[0].name][0] in graph.node_by_name


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


def test_the_fingerprint_is_of_the_graph_not_of_names_or_weights() -> None:
    graph = traced()
    torch.manual_seed(1)
    assert traced(Denoiser()).fingerprint == graph.fingerprint
    assert dataclasses.replace(graph, model="another").fingerprint == graph.fingerprint
    renamed = {node.name: f"renamed_{node.name}" for node in graph.nodes}

    def rename(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return Ref(renamed.get(argument.name, argument.name))
        return tuple(map(rename, argument)) if isinstance(argument, tuple) else argument

    nodes = tuple(
        dataclasses.replace(
            node, name=renamed[node.name], args=rename(node.args), kwargs=tuple((k, rename(v)) for k, v in node.kwargs)
        )
        for node in graph.nodes
    )
    assert dataclasses.replace(graph, nodes=nodes, results=rename(graph.results)).fingerprint == graph.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(2, 4, 8, 10)},
        {"x": torch.zeros(1, 4, 8, 8), "context": torch.zeros(1, 5, 6)},
        {"scale": 2.0},
    ],
)
def test_the_fingerprint_changes_with_shapes_and_literals(change: Mapping[str, Any]) -> None:
    assert traced(**change).fingerprint != traced().fingerprint


def test_the_fingerprint_changes_with_roles_and_order() -> None:
    graph = traced()
    assert trace(Denoiser().eval(), inputs(), {**ROLES, "context": "timestep"}).fingerprint != graph.fingerprint
    first, second = graph.nodes[-2:]
    assert dataclasses.replace(graph, nodes=(*graph.nodes[:-2], second, first)).fingerprint != graph.fingerprint


def test_fake_and_real_modules_trace_alike_and_real_ones_stay_as_they_are() -> None:
    real = Denoiser().eval()
    before = {name: parameter.clone() for name, parameter in real.named_parameters()}
    with fake_mode():
        fake = Denoiser().eval()
        fingerprint = trace(fake, inputs(), ROLES).fingerprint
    assert trace(real, inputs(), ROLES).fingerprint == fingerprint
    for name, parameter in real.named_parameters():
        assert type(parameter.data) is torch.Tensor
        assert torch.equal(parameter, before[name])
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in real.modules())


def test_a_graph_prints_readably_and_pickles() -> None:
    graph = traced()
    text = str(graph)
    assert "input %x: float32[2,4,8,8] latent" in text
    assert "aten.conv2d.default(%" in text
    assert "blocks.1.conv/conv2d.0" in text
    copy = pickle.loads(pickle.dumps(graph))
    assert copy == graph
    assert copy.fingerprint == graph.fingerprint


def run(graph: TracedGraph, module: nn.Module, arguments: Mapping[str, Any]) -> list[Any]:
    """Execute a graph node by node, as it says."""
    cpu = torch.device("cpu")
    state = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    values: dict[str, Any] = flatten_arguments(arguments)[0]
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


class Nested(nn.Module):
    def forward(self, x: torch.Tensor, extra: dict[str, Any], rotary: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return x * extra["ids"] + rotary[0] - rotary[1]


def test_nested_arguments_have_paths_and_the_longest_prefix_gives_the_role() -> None:
    arguments = {
        "x": torch.zeros(2), "extra": {"ids": torch.zeros(2), "kind": "a"}, "rotary": (torch.zeros(2), torch.ones(2)),
    }  # fmt: skip
    roles = {"x": "latent", "extra": "prompt", "rotary": "prompt", "rotary.1": "timestep"}
    graph = trace(Nested().eval(), arguments, roles)
    assert {item.name: item.role for item in graph.inputs} == {
        "x": Role.LATENT, "extra.ids": Role.PROMPT, "rotary.0": Role.PROMPT, "rotary.1": Role.TIMESTEP,
    }  # fmt: skip
    assert graph.literals == (("extra.kind", "a"),)
    assert role_of("extra.ids", {"extra": Role.CONSTANT}) is Role.CONSTANT


def test_calls_are_bound_by_signature() -> None:
    class Keywords(nn.Module):
        def forward(self, x: torch.Tensor, t: Any = None, **others: Any) -> torch.Tensor:
            return x

    assert bind_arguments(Keywords(), (1, 2), {"scale": 3}) == {"x": 1, "t": 2, "scale": 3}
    assert bind_arguments(Keywords(), (), {"x": 1}) == {"x": 1}
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        bind_arguments(Tied(), (1, 2), {"z": 3})


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.gate(x) * t


class Gate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Autocast(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.mm(x, x) * t


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * t * self.calls


class WriteToInput(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.mul_(t)


class Literal(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t * torch.tensor([1.0, 2.0, 3.0, 4.0])


class Mismatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 5))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.inside(x) * t


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching, r"module gate \(Gate\).*(?s:.)*What to do: control flow"),
        (Mismatch, r"module inside\.1 \(Linear\).*(?s:.)*What to do"),
        (Autocast, r"higher-order operator.*move autocast"),
        (Counting, r"calls in place|changes calls in its forward"),
        (WriteToInput, r"writes to x in place|changes x in its forward"),
        (Literal, r"neither parameter nor buffer \(lifted_tensor_0\).*register it as a buffer"),
    ],
)
def test_what_cannot_be_traced_is_refused_with_the_place_and_the_way_out(module: type[nn.Module], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(module().eval(), {"x": torch.zeros(4, 4), "t": torch.tensor(1.0)}, ROLES, model="mine")


def test_what_is_not_said_about_the_inputs_is_asked_for() -> None:
    denoiser = Denoiser().eval()
    with pytest.raises(TraceError, match="argument context has no role"):
        trace(denoiser, inputs(), {"x": "latent", "t": "timestep"})
    with pytest.raises(TraceError, match="no tensor argument has the role 'latent'"):
        trace(denoiser, inputs(), {"x": "prompt", "t": "timestep", "context": "prompt"})
    with pytest.raises(ValueError, match="a role is one of latent, timestep, prompt, constant; got 'noise'"):
        trace(denoiser, inputs(), {**ROLES, "x": "noise"})
    with pytest.raises(TraceError, match="argument scale is a complex"):
        trace(denoiser, {**inputs(), "scale": 1j}, ROLES)
    with pytest.raises(TraceError, match=r"training mode; call \.eval\(\) first"):
        trace(denoiser.train(), inputs(), ROLES)
