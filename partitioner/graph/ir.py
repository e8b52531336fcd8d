"""TracedGraph: a denoiser as plain data, free of torch, that prints readably and pickles.

Nodes (partitioner.graph.nodes) stand in execution order, which is a topological order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from partitioner.graph.nesting import OutputForm, nest_output
from partitioner.graph.nodes import (
    CONSTANT,
    Argument,
    Input,
    Node,
    Parameter,
    Ref,
    Role,
    Symbol,
    TensorData,
    TensorMeta,
    refs_in,
)

if TYPE_CHECKING:
    import networkx


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
        return tuple(refs_in(self.results))

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
