"""One trace for all engines that run equal denoisers alike: tracing takes most of an engine's start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from torch import nn

from partitioner.graph.arguments import flatten_arguments
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from runtime.driver import traced_graphs


class Traces:
    """The traces so far, by all that a trace depends on: structure, layout of parameters, arguments, but no values."""

    def __init__(self) -> None:
        self._known: dict[str, TracedGraph] = {}

    def trace(self, denoiser: nn.Module, arguments: Mapping[str, Any], roles: Any, *, model: str) -> TracedGraph:
        """As partitioner.trace."""
        flat = flatten_arguments(arguments)
        training = [module.training for module in denoiser.modules()]
        layouts = [
            (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)
            for tensor in denoiser.parameters()
        ]
        shapes = sorted((path, tensor.shape, tensor.stride(), tensor.dtype) for path, tensor in flat.tensors.items())
        folder = getattr(getattr(denoiser, "config", None), "_name_or_path", None)
        key = repr(
            (
                type(denoiser),
                denoiser,
                folder,
                training,
                layouts,
                shapes,
                flat.literals,
                flat.containers,
                sorted(roles.items()),
                model,
            )
        )
        if key not in self._known:
            self._known[key] = trace(denoiser, arguments, roles, model=model)
        return self._known[key]


@contextlib.contextmanager
def traced_once() -> Iterator[None]:
    """Engines that start in this block share their traces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced_graphs, "trace", Traces().trace)
        yield
