"""Calls of single operators, with arguments made up for the shapes, strides and dtypes of a node."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from partitioner.errors import MeasureError, first_line
from partitioner.graph.ir import Node, Role, TensorMeta, TracedGraph
from partitioner.graph.operator_classes import value_metas
from partitioner.graph.operators import bind, lowered, resolve


@dataclass(frozen=True)
class Call:
    """An operator with arguments made up for it. fresh: tensors that a step has just computed when it calls."""

    node: Node
    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    fresh: list[torch.Tensor]

    def run(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    def touch(self) -> None:
        """Bring what the step has just computed into the cache."""
        for tensor in self.fresh:
            tensor.sum() if tensor.dtype.itemsize > 1 else tensor.clone()  # 8-bit floats have no sum


def make_call(
    graph: TracedGraph,
    node: Node,
    device: torch.device,
    fresh: dict[str, Any],
    compiled: Callable[..., Any] | None = None,
) -> Call:
    """A call on random tensors. fresh: latent values made so far by name, shared with and extended for the caller.

    compiled: what compiled_node made of the operator, to be called instead of it.
    """
    values: dict[str, Any] = {}
    for name in node.reads:
        if name not in fresh:
            values[name] = random_value(graph, name, device)
            if _role(graph, name) is Role.LATENT:
                fresh[name] = values[name]
        else:
            values[name] = fresh[name]
    return Call(
        node=node,
        function=compiled or resolve(node.target),
        args=[values[name] for name in _distinct(node.reads)]
        if compiled
        else [bind(a, values, device) for a in node.args],
        kwargs={} if compiled else {key: bind(argument, values, device) for key, argument in node.kwargs},
        fresh=[values[n] for n in node.reads if n in fresh and isinstance(values[n], torch.Tensor)],
    )


def compiled_node(node: Node, device: torch.device) -> Callable[..., Any]:
    """What torch.compile makes of one operator, a function of what the node reads; its first call takes seconds.

    Every one has a code object of its own: torch compiles the same one a few times only.
    """
    run: Callable[..., Any] = torch.compile(
        lowered([node], _distinct(node.reads), [node.name], device).forward, dynamic=False
    )
    return run


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _role(graph: TracedGraph, name: str) -> Role:
    if name in graph.node_by_name:
        return graph.node_by_name[name].role
    return graph.input_by_name[name].role if name in graph.input_by_name else Role.CONSTANT


def first_run(call: Call, device: torch.device) -> None:
    """Warm up (code is loaded, kernels are chosen) and see that the device can do it."""
    node = call.node
    try:
        call.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except (RuntimeError, NotImplementedError) as error:
        dtypes = ", ".join(dict.fromkeys(meta.dtype for meta in node.outputs))
        raise MeasureError(
            f"{node.key} ({node.target}, {dtypes}) does not run on {device}: {first_line(error)}; measure in "
            "another dtype or on another device, or use a roofline estimate"
        ) from error


_BLOCK = 1 << 20


def random_value(graph: TracedGraph, name: str, device: torch.device) -> Any:
    """What an input, a parameter or a node of the graph could be: a tensor, or a list of them; see random_tensor.

    Parameters are as small as those of a layer at its start (1 over the root of what is summed), so that values stay of
    order 1 through a whole component: some operators take up to twice as long on huge ones (gelu, on a CPU).
    """
    if name in graph.parameter_by_name:
        meta = graph.parameter_by_name[name].meta
        summed = math.prod(meta.shape[1:]) or 1
        return random_tensor(meta, device, spread=summed**-0.5)
    made = [random_tensor(meta, device) for meta in value_metas(graph, name)]
    return made[0] if len(made) == 1 else made


def random_tensor(meta: TensorMeta, device: torch.device, *, spread: float = 1.0) -> torch.Tensor:
    """A tensor of that shape, stride and dtype: normal numbers of standard deviation ``spread``; zeros for integers,
    valid as indices; all True."""
    dtype: torch.dtype = getattr(torch, meta.dtype)
    count = extent(meta)
    if dtype is torch.bool:
        storage = torch.ones(count, dtype=dtype, device=device)
    elif dtype.is_floating_point or dtype.is_complex:
        kind = torch.complex64 if dtype.is_complex else torch.float32
        block = (spread * torch.randn(min(count, _BLOCK), dtype=kind, device=device)).to(dtype)
        # repeated: drawing a billion numbers takes seconds, and what they are does not matter
        storage = block.repeat(math.ceil(count / _BLOCK))[:count] if count else block
    else:
        storage = torch.zeros(count, dtype=dtype, device=device)
    return storage.as_strided(meta.shape, meta.stride)


def extent(meta: TensorMeta) -> int:
    """Elements of storage from the tensor's first to its last."""
    if meta.numel == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(meta.shape, meta.stride, strict=True))
