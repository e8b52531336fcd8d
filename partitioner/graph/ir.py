"""TracedGraph: a denoiser as plain data, free of torch, that prints readably and pickles.

A *value* is what an operator can read: an input, a parameter or a node's output. Values have names, which are unique in
a graph. Nodes stand in execution order, which is a topological order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from partitioner.graph.nesting import OutputForm, nest_output

if TYPE_CHECKING:
    import networkx

DTYPE_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip


class Role(IntEnum):
    """What a value depends on. An operator's role is the largest (``max``) of those that it reads.

    CONSTANT: parameters and literals only. PROMPT: also conditioning, which stays the same for a whole trajectory.
    TIMESTEP: also the timestep, but not the latent. LATENT: also the latent. Only LATENT nodes are placed; the others
    are computed by every component that reads them.

    STEP is a role of inputs only: what the caller makes anew at every step, as a ControlNet's residuals, and what is no
    latent, so that nothing can foresee it. Operators that read it are LATENT.
    """

    CONSTANT = 0
    PROMPT = 1
    TIMESTEP = 2
    STEP = 3
    LATENT = 4

    @classmethod
    def parse(cls, text: str) -> Role:
        """The role of that name.

        Raises:
            ValueError: There is none; the message names the choices.

        >>> Role.parse("latent").name
        'LATENT'
        """
        try:
            return cls[text.upper()]
        except KeyError:
            choices = ", ".join(role.name.lower() for role in reversed(cls))
            raise ValueError(f"a role is one of {choices}; got {text!r}") from None


@dataclass(frozen=True, slots=True)
class Ref:
    """A value that a node's arguments refer to by name."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True, slots=True)
class Symbol:
    """A constant of torch in a node's arguments. kind: dtype, device, layout or memory_format."""

    kind: str
    value: str

    def __repr__(self) -> str:
        return f"{self.kind}:{self.value}"


Argument = Any  # Ref | Symbol | TensorData | int | float | bool | str | None | tuple[Argument, ...]
CONSTANT = "graph.tensor"  # the target of a node that makes a tensor of the TensorData that is its argument


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Shape, strides (in elements) and dtype name of a tensor.

    >>> print(TensorMeta((2, 3), (3, 1), "float16"))
    float16[2,3]
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.numel * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class TensorData:
    """A tensor as data; see graph.constants.

    meta: its shape, strides and dtype; no two of its elements lie in one place. values: its memory. digest: what stands
    for them in a fingerprint.
    """

    meta: TensorMeta
    values: bytes
    digest: str

    def __repr__(self) -> str:
        return f"<{self.meta}: {self.digest}>"


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor argument of the denoiser. name: its path among the arguments ("added_cond_kwargs.text_embeds")."""

    name: str
    meta: TensorMeta
    role: Role


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter or buffer.

    name: of the value in the graph. path: its name in the module ("blocks.0.conv.weight"). requires_grad: as in the
    module; torch chooses kernels by it even where gradients are off, and they round differently in half precision.
    """

    name: str
    path: str
    meta: TensorMeta
    requires_grad: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call.

    Attributes:
        name: Name of the value that it makes; unique in the graph, but another trace may number it otherwise.
        key: Name that stays the same at other resolutions and batch sizes: "module.path/operator.k", the operator's
            k-th call in that module. Plans use it.
        target: The operator: "aten.linear.default" or "operator.getitem".
        args: Positional arguments; kwargs: keyword arguments, as pairs.
        module: Path of the module that makes the call.
        role: What the value depends on.
        outputs: Shape, strides and dtype of each tensor that it returns.
        group: The same number for nodes that share storage which one of them writes to; they are never cut apart. -1
            for all others.
        reads: Names of the values that it reads, each once, in order.
    """

    name: str
    key: str
    target: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]
    module: str
    role: Role
    outputs: tuple[TensorMeta, ...]
    group: int = -1
    reads: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "reads", tuple(dict.fromkeys(_refs((self.args, *(value for _, value in self.kwargs)))))
        )

    @property
    def meta(self) -> TensorMeta:
        """Shape, strides and dtype of its output.

        Raises:
            ValueError: It has none or several.
        """
        if len(self.outputs) != 1:
            raise ValueError(f"node {self.name} ({self.target}) has {len(self.outputs)} tensor outputs")
        return self.outputs[0]

    def __str__(self) -> str:
        arguments = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs]
        shapes = " ".join(map(str, self.outputs))
        return f"%{self.name} = {self.target}({', '.join(arguments)})  # {self.role.name.lower()} {shapes} {self.key}"


def _refs(argument: Argument) -> Iterator[str]:
    if isinstance(argument, Ref):
        yield argument.name
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _refs(item)


class _Cost(Protocol):
    @property
    def ms(self) -> float: ...


class _Costs(Protocol):
    """What GraphCosts is; the package of costs builds on this one."""

    @property
    def nodes(self) -> Mapping[str, _Cost]: ...


@dataclass(frozen=True)
class TracedGraph:
    """A traced denoiser: the operators of one call, for given shapes, dtypes and literals.

    Attributes:
        model: What plans call the model; class_name: the class of its module.
        inputs: The tensor arguments.
        literals: The other arguments, by path; a call with others needs another trace.
        containers: Kinds of the lists, tuples and empty dicts among the arguments, by path; see graph.arguments.
        parameters: The parameters and buffers that some node reads.
        nodes: The operator calls in execution order.
        results: The values and literals that the call returns, in the order of its flattened output.
        form: How the output holds them; None where it is flat: a tuple or dict of results, or one.
    """

    model: str
    class_name: str
    inputs: tuple[Input, ...]
    literals: tuple[tuple[str, Argument], ...]
    parameters: tuple[Parameter, ...]
    nodes: tuple[Node, ...]
    results: tuple[Argument, ...]
    containers: tuple[tuple[str, str], ...] = ()
    form: OutputForm = None

    @cached_property
    def node_by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def input_by_name(self) -> dict[str, Input]:
        return {item.name: item for item in self.inputs}

    @cached_property
    def parameter_by_name(self) -> dict[str, Parameter]:
        return {item.name: item for item in self.parameters}

    @cached_property
    def latent_nodes(self) -> tuple[Node, ...]:
        """The nodes that are placed, in execution order."""
        return tuple(node for node in self.nodes if node.role is Role.LATENT)

    @cached_property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """Value name -> names of the nodes that read it, in execution order."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            for name in node.reads:
                found.setdefault(name, []).append(node.name)
        return {name: tuple(readers) for name, readers in found.items()}

    @cached_property
    def result_values(self) -> tuple[str, ...]:
        """Names of the values that the denoiser returns."""
        return tuple(_refs(self.results))

    @cached_property
    def constants(self) -> tuple[TensorData, ...]:
        """The tensors that it carries as data, in execution order."""
        return tuple(node.args[0] for node in self.nodes if node.target == CONSTANT)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of operators, topology, shapes, dtypes, literals, parameter paths and the digests of constants.

        Names of values do not enter it, for they are numbered by position, and neither does the model's name.
        """
        number: dict[str, int] = {}
        for name in [i.name for i in self.inputs] + [p.name for p in self.parameters]:
            number[name] = len(number)
        for node in self.nodes:
            number[node.name] = len(number)

        def canonical(argument: Argument) -> Argument:
            if isinstance(argument, Ref):
                return ["%", number[argument.name]]
            if isinstance(argument, Symbol):
                return [argument.kind, "" if argument.kind == "device" else argument.value]
            if isinstance(argument, TensorData):
                return ["=", shape(argument.meta), argument.digest]
            if isinstance(argument, tuple):
                return [canonical(item) for item in argument]
            return repr(argument) if isinstance(argument, float) else argument

        def shape(meta: TensorMeta) -> list[Any]:
            return [meta.dtype, list(meta.shape)]

        document = {
            "inputs": [[i.name, i.role.name, shape(i.meta)] for i in self.inputs],
            "literals": [[k, canonical(v)] for k, v in self.literals],
            "parameters": [[p.path, shape(p.meta)] for p in self.parameters],
            "nodes": [
                [n.target, canonical(n.args), [[k, canonical(v)] for k, v in n.kwargs], n.key,
                 n.role.name, [shape(m) for m in n.outputs]]
                for n in self.nodes
            ],
            "results": canonical(self.results),
        }  # fmt: skip
        if self.form is not None:
            document["form"] = self.form
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def output(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """What the call returns, as a tuple. values: what ``results`` stand for, in the same order."""
        return tuple(values) if self.form is None else nest_output(self.form, iter(values))

    def computes_as(self, other: TracedGraph) -> bool:
        """Whether another graph, of the same parameters, computes the same to the last bit."""
        same = self.fingerprint == other.fingerprint and self.constants == other.constants
        # torch.matmul computes by whether a parameter requires a gradient, even where none is wanted
        gradients = [{p.path: p.requires_grad for p in graph.parameters} for graph in (self, other)]
        return same and gradients[0] == gradients[1]

    def to_networkx(self, costs: _Costs | None = None, placement: Mapping[str, int] | None = None) -> networkx.DiGraph:
        """The graph as a networkx.DiGraph, for analysis and drawing: a DAG of inputs and operators by value name.

        Every node has the attributes

        - ``kind``: "input" or "operator".
        - ``op``: the operator ("aten.linear.default"); ``module``: the path of the module that calls it; ``key``: the
          node's name in plans. Of an input ``op`` is "input", ``module`` empty and ``key`` its path.
        - ``role``: "latent", "timestep", "prompt" or "constant"; of an input also "step".
        - ``shape`` and ``dtype``: of its tensor, of the first where an operator makes several (as ``chunk`` does).
        - ``size_bytes``: of all that it makes; ``parameter_bytes``: of the parameters that it reads, which are no nodes
          of their own.
        - ``cost_ms``: time of one call; only where ``costs`` are given. 0 for an input.
        - ``component``: only of the operators that ``placement`` names. Those of other roles than latent are in no
          plan: whoever reads them computes them.

        An edge leads from a value to an operator that reads it. Its ``size_bytes`` are those of the value; its
        ``cost_ms`` is that of the reader, so that the longest path by ``cost_ms`` is the critical path.

        Args:
            costs: Costs of the nodes, as a CostModel or ``estimate`` gives them.
            placement: Component by node name (as Plan.place gives it) or by node key (as Plan.placement has it).

        >>> import networkx, torch
        >>> from partitioner import trace
        >>> from partitioner.costs.roofline import estimate
        >>> module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU(), torch.nn.Linear(8, 8)).eval()
        >>> graph = trace(module, {"input": torch.zeros(2, 8)}, {"input": "latent"})
        >>> dag = graph.to_networkx(estimate(graph, "cpu"), {"linear": 0, "silu": 0, "linear_1": 1})
        >>> networkx.dag_longest_path(dag, weight="cost_ms")
        ['input', 'linear', 'silu', 'linear_1']
        >>> [(name, op) for name, op in dag.nodes(data="op") if dag.nodes[name].get("component") == 0]
        [('linear', 'aten.linear.default'), ('silu', 'aten.silu.default')]
        """
        import networkx

        dag = networkx.DiGraph(model=self.model)
        for item in self.inputs:
            dag.add_node(
                item.name,
                kind="input",
                op="input",
                module="",
                key=item.name,
                parameter_bytes=0,
                **_attributes(item.role, (item.meta,)),
            )
        for node in self.nodes:
            parameters = [self.parameter_by_name[name] for name in node.reads if name in self.parameter_by_name]
            dag.add_node(
                node.name,
                kind="operator",
                op=node.target,
                module=node.module,
                key=node.key,
                parameter_bytes=sum(parameter.meta.size_bytes for parameter in parameters),
                **_attributes(node.role, node.outputs),
            )
            for name in node.reads:
                if name in dag:
                    dag.add_edge(name, node.name, size_bytes=dag.nodes[name]["size_bytes"])
            for name in (node.name, node.key):
                if placement is not None and name in placement:
                    dag.nodes[node.name]["component"] = placement[name]
        if costs is not None:
            cost_ms = {
                **dict.fromkeys(self.input_by_name, 0.0),
                **{name: cost.ms for name, cost in costs.nodes.items()},
            }
            networkx.set_node_attributes(dag, cost_ms, "cost_ms")
            networkx.set_edge_attributes(dag, {edge: cost_ms[edge[1]] for edge in dag.edges}, "cost_ms")
        return dag

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.class_name}), {len(self.nodes)} nodes"]
        lines += [f"input %{i.name}: {i.meta} {i.role.name.lower()}" for i in self.inputs]
        lines += [str(node) for node in self.nodes]
        return "\n".join([*lines, f"return {self.results!r}"])


def _attributes(role: Role, metas: tuple[TensorMeta, ...]) -> dict[str, Any]:
    """The attributes that inputs and operators share in a networkx graph."""
    return {
        "role": role.name.lower(),
        "shape": metas[0].shape if metas else (),
        "dtype": metas[0].dtype if metas else "",
        "size_bytes": sum(meta.size_bytes for meta in metas),
    }
