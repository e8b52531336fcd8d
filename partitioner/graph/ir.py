"""TracedGraph: the denoiser as plain data, free of torch, printable, hashable and picklable.

Legend: a *value* is anything an operator can read: an input, a parameter or a node's output. Values are
named; names are unique in a graph. Nodes stand in execution order, which is a topological order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

DTYPE_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip


class Role(IntEnum):
    """What a value depends on; the larger wins where two meet (so ``max`` joins roles).

    CONSTANT: parameters and literals only. PROMPT: also conditioning that stays the same for a whole
    trajectory. TIMESTEP: also the timestep (and perhaps the prompt), but not the latent. LATENT: the rest.
    Only LATENT nodes are placed; the others are computed by whoever reads them.
    """

    CONSTANT = 0
    PROMPT = 1
    TIMESTEP = 2
    LATENT = 3

    @classmethod
    def parse(cls, text: str) -> Role:
        """'latent', 'timestep', 'prompt' or 'constant' -> Role; ValueError names the choices otherwise."""
        try:
            return cls[text.upper()]
        except KeyError:
            choices = ", ".join(role.name.lower() for role in reversed(cls))
            raise ValueError(f"a role is one of {choices}; got {text!r}") from None


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to a value, as it stands in a node's arguments."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True, slots=True)
class Symbol:
    """A torch constant in a node's arguments: kind is dtype, device, layout or memory_format."""

    kind: str
    value: str

    def __repr__(self) -> str:
        return f"{self.kind}:{self.value}"


Argument = Any  # Ref | Symbol | int | float | bool | str | None | tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Shape, strides (in elements) and dtype name ("float16") of a tensor."""

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
class Input:
    """A tensor argument of the denoiser. name: its path, such as "added_cond_kwargs.text_embeds"."""

    name: str
    meta: TensorMeta
    role: Role


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter or buffer. name: the value; path: its name among the module's parameters and buffers."""

    name: str
    path: str
    meta: TensorMeta


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call.

    name: the value it makes. key: stable across resolutions and batches, "module.path/target.k".
    target: "aten.linear.default" or "operator.getitem". outputs: one meta per tensor it returns.
    group: nodes that share storage which one of them writes to have the same group and are never cut
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

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the values it reads, each once, in order."""
        found: dict[str, None] = {}
        for ref in _refs((self.args, tuple(value for _, value in self.kwargs))):
            found[ref] = None
        return tuple(found)

    @property
    def meta(self) -> TensorMeta:
        """The meta of its single tensor output; ValueError where it has none or several."""
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


@dataclass(frozen=True)
class TracedGraph:
    """A traced denoiser.

    literals: the non-tensor arguments it was traced with, by path (a call with others needs another trace).
    results: the values it returns, in the order of its flattened output (a Ref or a literal).
    """

    model: str
    class_name: str
    inputs: tuple[Input, ...]
    literals: tuple[tuple[str, Argument], ...]
    parameters: tuple[Parameter, ...]
    nodes: tuple[Node, ...]
    results: tuple[Argument, ...]

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
        """value name -> names of the nodes that read it, in execution order."""
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
    def fingerprint(self) -> str:
        """SHA-256 over the canonical graph: targets, topology, shapes, dtypes and parameter names.

        Value names do not enter (they are numbered by position), nor does the model's name.
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
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.class_name}), {len(self.nodes)} nodes"]
        lines += [f"input %{i.name}: {i.meta} {i.role.name.lower()}" for i in self.inputs]
        lines += [str(node) for node in self.nodes]
        return "\n".join([*lines, f"return {self.results!r}"])
