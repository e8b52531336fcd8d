"""CallReader: checks a denoiser call's arguments against the plan, makes them uniform and splits them over branches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from partitioner.errors import PartitionerError
from partitioner.graph.arguments import bind_arguments, flatten_arguments
from partitioner.graph.ir import Argument, TracedGraph
from partitioner.plan.plan import Plan
from runtime.errors import InputError

Tensors = Mapping[str, torch.Tensor]  # by path, such as "added_cond_kwargs.text_embeds"
Literals = Mapping[str, Argument]
CallSignature = tuple[tuple[Any, ...], ...]


class CallReader:
    """Reads the calls of one denoiser that is run by one plan."""

    def __init__(self, denoiser: nn.Module, plan: Plan) -> None:
        self._denoiser = denoiser
        self._plan = plan
        self._planned = {item.path: item for item in plan.inputs}
        self._latent = next(item for item in plan.inputs if item.role == "latent")

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], Literals]:
        """Read a call's arguments.

        A timestep that is a number, or of an integer type where the plan has float32, is converted to the plan's form,
        since schedulers differ in it (lossless below 2**24).

        Args:
            args: positional arguments, as the denoiser takes them.
            kwargs: keyword arguments; those that are None are left out, and so is return_dict.

        Returns:
            The tensors and the literals, each by path, such as "added_cond_kwargs.text_embeds".

        Raises:
            InputError: an argument is unknown or missing, or its dtype or number of dimensions is not the plan's.
        """
        try:
            arguments = bind_arguments(self._denoiser, args, kwargs)
            arguments = {name: value for name, value in arguments.items() if value is not None}
            arguments.pop("return_dict", None)
            for item in self._plan.inputs:
                if item.role == "timestep" and isinstance(arguments.get(item.path), (int, float)):
                    dtype = getattr(torch, item.dtype)
                    arguments[item.path] = torch.full(item.shape, arguments[item.path], dtype=dtype)
            tensors, literals = flatten_arguments(arguments)
        except (TypeError, PartitionerError) as error:
            raise InputError(f"the denoiser cannot be called like this: {error}") from error
        self._check(tensors)
        for path, tensor in tensors.items():
            planned = self._planned[path]
            if planned.role == "timestep" and planned.dtype == "float32" and not tensor.is_floating_point():
                tensors[path] = tensor.float()
        return tensors, literals

    def _check(self, tensors: Tensors) -> None:
        missing, extra = self._planned.keys() - tensors.keys(), tensors.keys() - self._planned.keys()
        if missing or extra:
            raise InputError(
                "this call's tensor arguments differ from the plan's: "
                + "; ".join(f"{', '.join(sorted(s))} {w}" for s, w in ((missing, "missing"), (extra, "not in it")) if s)
                + ". Make a plan for such calls: partition-model "
                + f"--model {self._plan.model} --devices {self._plan.ranks}"
            )
        for path, tensor in tensors.items():
            planned = self._planned[path]
            shape, wanted = planned.shape, getattr(torch, planned.dtype)
            # a plan may be run in another floating dtype than it was made for, but not in one that is neither's
            fits = tensor.dtype is wanted or (wanted.is_floating_point and tensor.dtype is self._dtype())
            if planned.role != "timestep" and not fits:
                expected = self._dtype() if wanted.is_floating_point else wanted
                raise InputError(f"{path} is of {tensor.dtype}, expected {expected}: convert it with .to({expected})")
            if tensor.dim() != len(shape):
                raise InputError(
                    f"{path} has {tensor.dim()} dimensions ({list(tensor.shape)}), the plan has {len(shape)} "
                    f"({list(shape)})"
                )

    def halves(self, tensors: Tensors) -> list[dict[str, torch.Tensor]]:
        """The inputs of each branch, by path; one branch takes all rows where they cannot be split evenly."""
        return self.parts(tensors, self._plan.branches)

    def parts(self, tensors: Tensors, count: int) -> list[dict[str, torch.Tensor]]:
        """Split the inputs into ``count`` parts of equally many rows; one part where that is not possible."""
        rows = tensors[self._latent.path].shape[0]
        if count == 1 or rows % count:
            return [dict(tensors)]
        parts: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
        for path, tensor in tensors.items():
            shape = self._planned[path].shape
            per_row = shape[0] // self._latent.shape[0] if shape else 0
            # something per row (a prompt, a frame of one) is split; what has no row dimension is shared
            split = per_row > 0 and tensor.shape[0] == per_row * rows
            pieces = tensor.chunk(count) if split else (tensor,) * count
            for part, piece in zip(parts, pieces, strict=True):
                part[path] = piece
        return parts

    def example(self, tensors: Tensors, literals: Literals) -> dict[str, Any]:
        """Arguments to trace such a call with, by name; their tensors are zeros."""
        arguments: dict[str, Any] = {}
        for path, tensor in tensors.items():
            _put_at(arguments, path, torch.zeros(tensor.shape, dtype=tensor.dtype))
        for path, literal in literals.items():
            _put_at(arguments, path, literal)
        if "return_dict" in inspect.signature(self._denoiser.forward).parameters:
            arguments["return_dict"] = False
        return arguments

    def planned_example(self) -> dict[str, Any]:
        """Arguments to trace the call that the plan was made for, in the denoiser's own floating dtype."""
        dtype = self._dtype()
        arguments: dict[str, Any] = {}
        for item in self._plan.inputs:
            wanted = dtype if item.dtype == self._latent.dtype else getattr(torch, item.dtype)
            _put_at(arguments, item.path, torch.zeros(item.shape, dtype=wanted))
        for literal in self._plan.literals:
            _put_at(arguments, literal.path, literal.value)
        return arguments

    def _dtype(self) -> torch.dtype:
        """The denoiser's floating dtype."""
        return next((t.dtype for t in self._denoiser.parameters() if t.is_floating_point()), torch.float32)


def call_signature(tensors: Tensors, literals: Literals) -> CallSignature:
    """What the traced graph of a call depends on, as a key: shapes, dtypes and literals."""
    return _signature(((p, tuple(t.shape), str(t.dtype)) for p, t in tensors.items()), literals.items())


def graph_signature(graph: TracedGraph) -> CallSignature:
    """The ``call_signature`` of the calls that a traced graph is of."""
    return _signature(((i.name, i.meta.shape, f"torch.{i.meta.dtype}") for i in graph.inputs), graph.literals)


def _signature(tensors: Iterable[tuple[Any, ...]], literals: Iterable[tuple[str, Argument]]) -> CallSignature:
    kept = sorted((path, repr(value)) for path, value in literals if path != "return_dict" and value is not None)
    return (*sorted(tensors), *kept)


def _put_at(arguments: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at its path: "a.b" is key b of the dict that is argument a."""
    *parents, last = path.split(".")
    for parent in parents:
        arguments = arguments.setdefault(parent, {})
    arguments[last] = value
