"""One trace for all engines that run equal denoisers alike: tracing takes most of an engine's start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from torch import nn

from partitioner.graph import export
from partitioner.graph.arguments import flatten_arguments
from partitioner.graph.ir import TracedGraph
from runtime.driver import traced_graphs

_trace = export.trace


class Traces:
    """The traces so far, by all that a trace depends on: structure, layout of parameters, arguments, but no values."""

    def __init__(self) -> None:
        self._known: dict[str, TracedGraph] = {}

    def trace(
        self, denoiser: nn.Module, arguments: Mapping[str, Any], roles: Any, *, model: str = "custom"
    ) -> TracedGraph:
        """As partitioner.trace. What has hooks is traced anew: they may do anything."""
        if any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.modules()):
            return _trace(denoiser, arguments, roles, model=model)
        flat = flatten_arguments(arguments)
        training = [module.training for module in denoiser.modules()]
        processors = [type(getattr(module, "processor", None)) for module in denoiser.modules()]
        layouts = [
            (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)
            for tensor in denoiser.parameters()
        ]
        shapes = sorted((path, tensor.shape, tensor.stride(), tensor.dtype) for path, tensor in flat.tensors.items())
        config = dict(getattr(denoiser, "config", None) or {})  # of diffusers' models: what they were made with
        key = repr(
            (
                type(denoiser),
                denoiser,
                sorted((name, value) for name, value in config.items() if name != "_name_or_path"),
                training,
                processors,
                layouts,
                shapes,
                flat.literals,
                flat.containers,
                sorted(roles.items()),
            )
        )
        if key not in self._known:
            self._known[key] = _trace(denoiser, arguments, roles, model=model)
        known = self._known[key]
        return known if known.model == model else replace(known, model=model)


@contextlib.contextmanager
def traced_once(*, plans: bool = False, known: Traces | None = None) -> Iterator[None]:
    """Engines that start in this block share their traces; in a block within another, those of that one.

    Args:
        plans: Plans that are made in it share them too.
        known: Traces to go on from.
    """
    outer = getattr(vars(traced_graphs)["trace"], "__self__", None)
    known = known or (outer if isinstance(outer, Traces) else Traces())
    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(traced_graphs, "trace", known.trace))
        if plans:
            patches.enter_context(patch.object(export, "trace", known.trace))
        yield
